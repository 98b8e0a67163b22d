"""Whole programs on many tasks: a prompt for each, several methods in one table, mistakes."""

import collections
import dataclasses
import json
import shutil
import statistics

import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax.data.batches import training_batches
from frozen_jax.data.sources import open_source
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.evaluation.task_scores import score_tasks
from frozen_jax.methods import METHODS
from frozen_jax.models.adapter_folder import read_adapter, write_adapter
from frozen_jax.run import stage
from frozen_jax.run.results.records import table_rows
from frozen_jax.training.metrics import read_metrics
from tests.run.task_files import DATA_SETS, HELD_OUT, lines_file

PER_TASK = "multitask_prompt_tuning.py:smoke"
QUESTION = "What is the capital of Peru?"


def read(path):
  return json.loads(path.read_text())


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def per_task_run(program, tmp_path_factory):
  """configs/multitask_prompt_tuning.py:smoke, run to its end: its workdir."""
  workdir = tmp_path_factory.mktemp("runs") / "per_task"
  program.run(PER_TASK, f"--workdir={workdir}")
  return workdir


@pytest.fixture
def run_here(call, program):
  """`run_here(config, workdir, *arguments)`: the program in this process -> standard output."""

  def run(config, workdir, *arguments):
    status, out, err = call(*program.command(config, f"--workdir={workdir}", *arguments)[2:])
    assert status == 0, err
    return out

  return run


# --- a prompt for each data set


def test_the_results_of_all_prompts(per_task_run, tasks, lm):
  results = read(per_task_run / "results.json")
  assert results["frozen_unchanged"] is True and "encoder_fingerprint" not in results
  assert results["method"] == "prompt_tuning"
  rows = table_rows(results)
  assert list(rows) == ["zero_shot", "shared", "per_task"] and list(results["rows"]) == [
    "zero_shot"
  ]
  assert results["baseline"] == {"name": "shared"} | rows["shared"]
  count = 4 * lm.config.width
  assert results["trainable_parameters"] == len(DATA_SETS) * count
  sizes = {name: stage["trainable_parameters"] for name, stage in results["stages"].items()}
  assert sizes == {"shared": count, "per_task": len(DATA_SETS) * count}
  assert results["held_out"].keys() == {str(tasks["held_out"])}
  for figures in results["held_out"][str(tasks["held_out"])].values():
    assert {"score", "accuracy", "rouge_l", "loss"} <= figures.keys() and figures["examples"] == 7
  learnt = [e["loss"] for e in read_metrics(per_task_run) if e["split"] == "validation"]
  assert learnt[2] < learnt[0] - 0.05 and learnt[5] < learnt[3] - 0.05


def test_the_score_is_the_mean_over_data_sets_of_that_over_templates(per_task_run):
  results = read(per_task_run / "results.json")
  cells = collections.defaultdict(lambda: collections.defaultdict(list))
  for row in rows_of(per_task_run / "predictions.jsonl"):
    score = row["scores"]["accuracy" if "choices" in row else "rouge_l"]
    cells[row["dataset"]][row.get("template", "")].append(score)
    right = 100.0 * (row["prediction"] in row["answers"])
    assert row["scores"]["accuracy" if "choices" in row else "exact_match"] == right
    assert list(row["predictions"]) == ["zero_shot", "shared"]
  assert {name: sorted(own) for name, own in cells.items()} == DATA_SETS
  means = [statistics.fmean(map(statistics.fmean, own.values())) for own in cells.values()]
  assert results["metrics"]["score"] == pytest.approx(statistics.fmean(means))


def test_figures_by_task_are_kept_for_each_row_and_source(per_task_run, tasks):
  table = read(per_task_run / "by_task.json")
  results = read(per_task_run / "results.json")
  test_rows, held_out = table_rows(results), results["held_out"][str(tasks["held_out"])]
  assert table.keys() == {str(tasks["test"]), str(tasks["held_out"])}
  for split, names, rows in (("test", DATA_SETS, 8), ("held_out", HELD_OUT, 7)):
    systems = table[str(tasks[split])]
    assert list(systems) == ["zero_shot", "shared", "per_task"]
    for system, own in systems.items():
      assert (own["rows"], own["skipped"], own["left_out"]) == (rows, 0, 0)
      assert {n: list(one["templates"]) for n, one in own["datasets"].items()} == names
      figures = (test_rows if split == "test" else held_out)[system]
      assert own["mean"]["score"] == figures["score"]


@pytest.fixture(scope="module")
def distinct_prompts(per_task_run, lm, tmp_path_factory):
  """The run with prompts that differ: (workdir, their vectors [N, P, D])."""
  workdir = shutil.copytree(per_task_run, tmp_path_factory.mktemp("apart") / "run")
  tree, info = read_adapter(workdir / "adapter")
  vectors = tree["trained"]["prompt"]["vectors"]
  noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
  tree["trained"]["prompt"]["vectors"] = vectors + 5 * np.std(vectors) * noise
  kept = {k: v for k, v in info.items() if k not in ("format_version", "tensors", "sha256")}
  write_adapter(workdir / "adapter", tree, kept)
  return workdir, tree["trained"]["prompt"]["vectors"]


def with_one_prompt(workdir, lm, vectors):
  """What the LM answers after these vectors [P, D] alone."""
  adapter = frozen_jax.load_adapter(workdir, lm)
  sections = {"prompt": dataclasses.replace(adapter.sections["prompt"], per_task=False)}
  method = METHODS["prompt_tuning"].build(lm, sections)
  trained = {"prompt": {"vectors": vectors}}
  alone = dataclasses.replace(adapter, method=method, trained=trained, sections=sections)
  return alone.generate([QUESTION], max_new_tokens=16)[0]


def test_a_row_that_names_its_data_set_is_answered_after_its_prompt(
  distinct_prompts, run_here, lm, tmp_path
):
  workdir, vectors = distinct_prompts
  names = read(workdir / "adapter" / "adapter.json")["inputs"]["datasets"]
  assert sorted(names) == sorted(DATA_SETS)
  row = {"input": QUESTION}
  rows = [row | {"dataset": name} for name in names] + [row | {"dataset": "unknown"}, row]
  path = lines_file(tmp_path / "rows.txt", *rows, QUESTION)
  run_here(PER_TASK, workdir, "--mode=predict", f"--config.predict.input={path}")
  found = rows_of(workdir / "predictions.jsonl")
  assert [one.get("dataset") for one in found] == [*names, "unknown", None, None]
  mean = with_one_prompt(workdir, lm, vectors.mean(axis=0))
  expected = [with_one_prompt(workdir, lm, own) for own in vectors] + [mean] * 3
  assert [one["prediction"] for one in found] == expected
  assert len(set(expected)) == len(DATA_SETS) + 1
  adapter = frozen_jax.load_adapter(workdir, lm)
  assert adapter.generate([QUESTION], max_new_tokens=16) == [mean]


def test_evaluate_gives_the_same_and_changes_nothing_of_the_training(
  per_task_run, run_here, tmp_path
):
  workdir = shutil.copytree(per_task_run, tmp_path / "run")
  run_here(PER_TASK, workdir, "--mode=evaluate", "--config.evaluation=again")
  evaluation = workdir / "evaluations" / "again"
  ours, theirs = (read(path / "results.json") for path in (evaluation, per_task_run))
  del theirs["metrics"]["tokens_per_second"]  # of the training
  for key in ("metrics", "baseline", "rows", "table", "held_out"):
    assert ours[key] == theirs[key], key
  assert read(evaluation / "by_task.json") == read(per_task_run / "by_task.json")
  name = "predictions.jsonl"
  assert (evaluation / name).read_bytes() == (per_task_run / name).read_bytes()
  for name in ("results.json", "by_task.json", "predictions.jsonl"):
    assert (workdir / name).read_bytes() == (per_task_run / name).read_bytes(), name


def test_an_exported_adapter_holds_all_prompts(per_task_run, run_here, lm, tmp_path):
  folder = tmp_path / "mine"
  run_here(PER_TASK, per_task_run, "--mode=export", f"--config.export.folder={folder}")
  ours, theirs = (frozen_jax.load_adapter(path, lm).trained for path in (folder, per_task_run))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert ours["prompt"]["vectors"].shape == (len(DATA_SETS), 4, lm.config.width)


def test_peft_has_no_form_for_several_prompts(per_task_run, refused, program):
  arguments = (f"--workdir={per_task_run}", "--mode=export", "--config.export.format=peft")
  said = refused(*program.command(PER_TASK, *arguments)[2:])
  assert "does not write several prompts" in said and "export.format=adapter" in said


# --- several methods


def test_methods_are_compared_on_equal_examples(run_here, tasks, lm, encoder, tmp_path):
  order = "--config.stage_order=prefix_tuning,prompt_tuning"
  out = run_here("compare_methods.py:smoke", tmp_path, order, "--config.evaluate.max_examples=4")
  results = read(tmp_path / "results.json")
  rows = table_rows(results)
  assert list(rows) == ["zero_shot", "prefix_tuning", "prompt_tuning"]
  assert list(results["held_out"][str(tasks["held_out"])]) == list(rows)
  own = {name: value for name, value in results["metrics"].items() if name != "tokens_per_second"}
  assert results["baseline"] == {"name": "prompt_tuning"} | own
  assert results["frozen_unchanged"] is True and results["method"] == "prompt_tuning"
  titles = ["zero_shot", "prefix_tuning", "prompt_tuning"]
  table, _, held_out = out.partition(f"held out: {tasks['held_out']}\n")
  for text in (table, held_out):
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == titles
  assert len(rows_of(tmp_path / "predictions.jsonl")) == results["metrics"]["examples"] == 4
  seen = collections.defaultdict(list)
  for line in read_metrics(tmp_path):
    if line["split"] == "train":
      seen[line["stage"]].append((line["step"], line["tokens"], line["targets"]))
  assert len(seen["prefix_tuning"]) == 3 and seen["prefix_tuning"] == seen["prompt_tuning"]

  # A method that reads no encoder is not bound to the one that stood alongside it.
  beside = dataclasses.replace(lm, encoder=frozen_jax.load_encoder(str(encoder)))
  assert results["encoder_fingerprint"] == beside.encoder.fingerprint
  assert frozen_jax.load_adapter(tmp_path, lm).lm.encoder is None
  assert frozen_jax.load_adapter(tmp_path, beside).trained.keys() == {"prompt"}


# --- what is drawn


class _Drawn(Exception):
  """Carries how often each data set was drawn."""


@pytest.mark.parametrize(
  "arguments, shares",
  [
    (["proportional"], (32, 16, 16)),
    (["temperature", "--config.data.temperature=1"], (32, 16, 16)),
    (["temperature", "--config.data.temperature=1e6"], (22, 21, 21)),
    (["proportional", "--config.data.cap=8"], (22, 21, 21)),
  ],
)
def test_how_data_sets_are_mixed_is_as_the_command_says(
  run_here, monkeypatch, tmp_path, arguments, shares
):
  def draw(*arguments, **named):
    batches = training_batches(*arguments, **named)
    raise _Drawn(collections.Counter(t for _ in range(8) for t in next(batches)["task"].tolist()))

  monkeypatch.setattr(stage, "training_batches", draw)
  with pytest.raises(_Drawn) as found:
    sampling, *more = arguments
    run_here(
      PER_TASK,
      tmp_path,
      "--config.stage_order=per_task",
      f"--config.data.sampling={sampling}",
      *more,
    )
  (counts,) = found.value.args
  assert counts.total() == 64
  for task, share in enumerate(shares, start=1):
    assert abs(counts[task] - share) <= 1, counts


def test_rows_that_leave_no_room_for_an_answer_are_skipped(lm, tmp_path):
  """Also after a prompt that the model itself may not have, so that all have the same rows."""
  long, longer = (" ".join(["Who lives in Peru?"] * count) for count in (11, 13))
  ids = [len(lm.tokenizer(text)["input_ids"]) for text in (long, longer)]
  choices = ["Peru", " ".join(["Lima"] * 20)]
  rows = [
    {"dataset": "a", "input": longer, "target": "Peru"},
    {"dataset": "a", "input": long, "target": "Peru"},
    {"dataset": "b", "input": long, "target": "Peru", "choices": choices},
    {"dataset": "b", "input": long, "target": "Peru", "choices": choices[:1]},
  ]
  source = open_source(str(lines_file(tmp_path / "rows.jsonl", *rows)))
  free = lm.config.context - ids[0]
  settings = EvaluateSettings(max_examples=9, max_new_tokens=8, batch_size=8)
  model = lm.zero_shot(generation=settings)
  for prompt_length, kept in ((free - 8, ["a", "b"]), (free - 7, ["b"])):
    task = QuestionTask(lm.tokenizer, "{question}", (ids[0],))
    table, predictions = score_tasks(model, source, task, settings, prompt_length)
    assert [one["dataset"] for one in predictions] == kept
    assert (table["rows"], table["skipped"]) == (len(kept), 4 - len(kept))


# --- mistakes: each is said in one line before anything is trained

MISTAKES = [
  ("id_pt.py:smoke", ["model.encoder="], "needs a text encoder; name one"),
  ("id_pt.py:smoke", ["model.encoder=nope"], "there is no model 'nope'"),
  ("id_pt.py:smoke", ["model.encoder={tiny}"], "{tiny} is a decoder"),
  ("id_pt.py:smoke", ["model.encoder={wordless}"], "this encoder has no tokenizer"),
  ("id_pt.py:smoke", ["data.encoder_length=1"], "data.encoder_length is 1; it must"),
  ("id_pt.py:smoke", ["generator.p_prime_length=39"], "data.encoder_length leaves 1 tokens"),
  ("id_pt.py:smoke", ["generator.p_prime_length=-1"], "generator.p_prime_length is -1"),
  ("id_pt.py:smoke", ["generator.heads=3"], "width is 16, which generator.heads=3 does not"),
  (PER_TASK, ["data.sampling=equal"], "data.sampling is 'equal'; it is one of"),
  (PER_TASK, ["data.cap=-1"], "data.cap is -1"),
  (PER_TASK, ["data.temperature=0"], "data.temperature is 0"),
  (PER_TASK, ["evaluate.normalisation=words"], "evaluate.normalisation is 'words'; it is one of"),
  (PER_TASK, ["data.train={questions}"], "prompt.per_task needs rows that name their data set"),
  (PER_TASK, ["data.train={odd_choices}"], "{odd_choices}, line 3: choices is no list of texts"),
  (PER_TASK, ["data.validation={odd_choices}"], "{odd_choices}, line 3: choices is no list"),
  (PER_TASK, ["data.held_out={odd_choices}"], "{odd_choices}, line 3: choices is no list"),
  (PER_TASK, ["data.held_out={more}"], "{more} is held out, and capitals of it is in the training"),
]


@pytest.fixture(scope="module")
def files(tiny, make_encoder_folder, tmp_path_factory):
  """What the mistakes name."""
  folder = tmp_path_factory.mktemp("mistakes")
  good = {"dataset": "d", "input": "Which?", "target": "a", "choices": ["a", "b"]}
  rows = {
    "questions": [{"question": QUESTION, "answers": ["Lima"]}],
    "odd_choices": [good, good, good | {"choices": "a, b"}],
    "more": [good, good | {"dataset": "capitals"}],
  }
  found = {name: lines_file(folder / f"{name}.jsonl", *own) for name, own in rows.items()}
  return found | {"tiny": tiny, "wordless": make_encoder_folder(words=False)}


@pytest.mark.parametrize("config, changes, message", MISTAKES, ids=[m[1][0] for m in MISTAKES])
def test_a_mistake_is_said_in_one_line(refused_run, files, tmp_path, config, changes, message):
  said = refused_run(config, *(f"--config.{change.format(**files)}" for change in changes))
  assert message.format(**files) in said
  assert not (tmp_path / "run" / "metrics.jsonl").exists(), "nothing has been trained"
