"""Textual recursion from questions to its table: folds, proposals, a kill, a rerun, predictions."""

import json
import logging
import math
import shutil

import pytest

import frozen_jax
from frozen_jax import run
from frozen_jax.config.overrides import override
from frozen_jax.core.errors import UserError
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.models import generation
from frozen_jax.pipelines.propose_select import sampling
from frozen_jax.run.results.records import table_rows
from frozen_jax.run.settings import with_defaults
from frozen_jax.text.answers import normalise
from frozen_jax.tools import ask
from tests.pipelines.artifact_digests import artifact_digests


def rows(path):
  return list(JsonLines(path))


def _figures(record):
  """The rows of a table without how long the training took."""
  timed = ("tokens_per_second",)
  return {
    name: {key: value for key, value in row.items() if key not in timed}
    for name, row in table_rows(record).items()
  }


@pytest.fixture(scope="module")
def results(finished):
  return json.loads((finished / "results.json").read_text())


def test_the_table_has_pass_one_and_what_chooses_among_the_same_samples(results):
  table = table_rows(results)
  assert list(table) == ["zero_shot", "answer", "majority", "likeliest", "oracle", "select"]
  exact = {name: figures["exact_match"] for name, figures in table.items()}
  assert exact["oracle"] >= max(exact["majority"], exact["likeliest"])
  assert {figures["examples"] for figures in table.values()} == {4}
  assert results["baseline"]["name"] == "answer" and results["frozen_unchanged"]
  assert list(results["stages"]) == ["answer", "select"]
  for name in ("answer", "majority", "oracle"):
    found = results["paired"][name]
    assert found["difference"] == pytest.approx(exact["select"] - exact[name])
    assert found["difference_low"] <= found["difference"] <= found["difference_high"]


def test_nothing_is_proposed_by_a_prompt_that_was_tuned_on_the_question(finished):
  folder = finished / "candidates"
  seen = set()
  for fold in range(2):
    tuned_on = {row["id"].partition("/")[0] for row in rows(folder / f"questions_fold{fold}.jsonl")}
    asked = [row["id"] for row in rows(folder / f"sampled_fold{fold}.jsonl")]
    assert asked and not tuned_on & {id.partition("/")[0] for id in asked}
    seen |= set(asked)
  assert len(seen) == 8, "candidates.questions"
  stages = {json.loads(line)["stage"] for line in (finished / "metrics.jsonl").open()}
  assert stages == {"answer", "answer_fold0", "answer_fold1", "select"}


def test_training_texts_have_the_candidates_in_several_orders(finished):
  folder = finished / "candidates"
  texts = {row["id"]: row for row in rows(folder / "rendered_train.jsonl")}
  sampled = [row for fold in range(2) for row in rows(folder / f"sampled_fold{fold}.jsonl")]
  assert len(texts) == 2 * len(sampled)
  for row in sampled:
    first, second = (texts[f"{row['id']}/{number}"] for number in range(2))
    assert sorted(first["candidates"]) == sorted(second["candidates"])
    assert first["input"].startswith(f"Question: {row['question']}\nProposed answers: ")
    proposed = {normalise(text) for text, _ in row["samples"]}
    assert len(row["samples"]) == 4 and len(first["candidates"]) == min(len(proposed), 3)
    for text, _, log_prob in first["candidates"]:
      shown = f"{text} ({round(100 * math.exp(log_prob))}%)"
      assert normalise(text) in proposed and shown in first["input"]
  orders = [[one[0] for one in row["candidates"]] for row in texts.values()]
  assert any(a != b for a, b in zip(orders[::2], orders[1::2], strict=True))


def test_test_texts_have_the_most_frequent_first(finished):
  for row in rows(finished / "candidates" / "rendered_test.jsonl"):
    counts = [count for _, count, _ in row["candidates"]]
    assert counts == sorted(counts, reverse=True)


def test_a_killed_run_continues_where_it_was(finished, make_config, tmp_path, monkeypatch, caplog):
  caplog.set_level(logging.INFO)
  sample = sampling.sample_answers
  calls = []

  def killed_at_the_second_file(*arguments):
    calls.append(1)
    if len(calls) > 1:
      raise KeyboardInterrupt
    return sample(*arguments)

  monkeypatch.setattr(sampling, "sample_answers", killed_at_the_second_file)
  with pytest.raises(KeyboardInterrupt):
    run.train(make_config(), tmp_path / "run")
  monkeypatch.setattr(sampling, "sample_answers", sample)
  caplog.clear()
  again = run.train(make_config(), tmp_path / "run")
  assert "sampled_fold0.jsonl: unchanged" in caplog.text
  of_both = (artifact_digests(one / "candidates") for one in (tmp_path / "run", finished))
  assert next(of_both) == next(of_both)
  assert _figures(again) == _figures(json.loads((finished / "results.json").read_text()))


def test_a_moved_workdir_is_continued(finished, make_config, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  moved = tmp_path / "moved"
  shutil.copytree(finished, moved)
  before = json.loads((moved / "results.json").read_text())
  (moved / "results.json").unlink()
  after = run.train(make_config(), moved)
  assert _figures(after) == _figures(before) and "made in" not in caplog.text


def test_a_finished_run_goes_through_both_passes(
  finished, make_config, files, lm, tmp_path, capsys
):
  """Predict, the terminal, Python and evaluate give what the training run's last row gave."""
  expected = {row["id"]: row["prediction"] for row in rows(finished / "predictions.jsonl")}
  config = make_config(**{"predict.input": str(files["data.test"])})
  workdir = shutil.copytree(finished, tmp_path / "run")  # the predictions are written into it
  found = run.predict(config, workdir)
  assert {row["id"]: row["prediction"] for row in found} == expected
  questions = {row["id"]: row["question"] for row in rows(files["data.test"])}
  model = frozen_jax.load_adapter(finished, lm)
  texts = model.generate(list(questions.values()), max_new_tokens=4)
  assert dict(zip(questions, texts, strict=True)) == expected
  capsys.readouterr()
  (id, question), *_ = questions.items()
  assert ask.main([str(finished), question]) == 0
  answer, proposed = capsys.readouterr().out.splitlines()
  assert answer == expected[id] and proposed.startswith("proposed: ")


def test_a_finished_run_is_scored_on_other_questions(
  finished, make_config, results, tmp_path, caplog
):
  caplog.set_level(logging.INFO)
  workdir = shutil.copytree(finished, tmp_path / "run")
  again = run.evaluate(make_config(evaluation="again"), workdir)
  assert "made in" not in caplog.text, "the same questions, model and settings"
  table = table_rows(again)
  assert list(table) == ["zero_shot", "answer", "majority", "likeliest", "oracle", "select"]
  assert _figures(again) == _figures(results)
  folder = workdir / "evaluations" / "again"
  assert table_rows(json.loads((folder / "results.json").read_text())) == table
  predictions = "predictions.jsonl"
  assert (folder / predictions).read_bytes() == (finished / predictions).read_bytes()
  for name in ("results.json", predictions):
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), "of the training"
  template = {"candidates.template.candidate": "{text} ({count})"}
  run.evaluate(make_config(**template), workdir)
  shown = "candidates/rendered_test.jsonl"
  assert (workdir / shown).read_bytes() == (finished / shown).read_bytes(), "as it was tuned"
  fewer = run.evaluate(make_config(**{"evaluate.max_examples": 1}), workdir)
  assert {figures["examples"] for figures in table_rows(fewer).values()} == {1}


def test_answers_by_beam_search(finished, make_config, files, lm, tmp_path):
  """`evaluate.num_beams` gives the best of as many beams of pass two."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  changes = {"evaluate.num_beams": 3, "predict.input": str(files["data.test"])}
  predicted = [row["prediction"] for row in run.predict(make_config(**changes), workdir)]
  model = frozen_jax.load_adapter(workdir, lm)
  read = model.inference.inputs(model, list(JsonLines(files["data.test"])))
  prompts = [model.question_task.prompt(row) for row in read]
  found = generation.beam_search(model, prompts, 3, 4)
  assert predicted == [best.text.strip() for best, *_ in found]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"candidates.proposer": "select"}, "candidates.proposer is 'select'; name a stage"),
    ({"candidates.samples": "0"}, "candidates.samples is 0"),
    ({"candidates.temperature": "0"}, "candidates.temperature is 0"),
    ({"candidates.folds": "1"}, "candidates.folds is 1"),
    (
      {"candidates.folds": "6"},
      "candidates.folds is 6, but the training questions are of 5 groups",
    ),
    ({"candidates.learn_from": "wrong"}, "candidates.learn_from is 'wrong'; it is one of"),
    ({"candidates.learn_from": "right"}, "no train question has a right answer among the 3"),
    ({"candidates.template.candidate": "{name}"}, "candidates.template.candidate has name"),
    ({"candidates.template.prompt": "{question}"}, "template.prompt lacks {candidates}"),
    ({"candidates.template.separator": "{"}, "separator is malformed"),
    ({"stages.answer.train.steps": "0"}, "the stage that tunes it does not run"),
    ({"stages.select.train.steps": "0"}, "stage select has 0 steps"),
    ({"evaluate.num_beams": "0"}, "evaluate.num_beams is 0"),
  ],
)
def test_mistakes(make_config, tmp_path, changes, message):
  config = with_defaults(make_config())
  override(config, changes.items())
  with pytest.raises(UserError, match=message.replace("{", r"\{").replace("}", r"\}")):
    run.train(config, tmp_path)
