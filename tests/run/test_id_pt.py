"""ID-PT as a whole program: what it leaves, its adapter, cached encoder states, kills, devices."""

import dataclasses
import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax import main as command
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.models.adapter_folder import read_adapter
from frozen_jax.run import stage
from frozen_jax.run.results.records import table_rows
from frozen_jax.sharding.checksum import checksum
from frozen_jax.training.checkpoints import load_best
from frozen_jax.training.metrics import read_metrics
from tests.processes import ROOT

CONFIG = "id_pt.py:smoke"
ALONE = "--config.stage_order=id_pt"
# One stage with p'=0, an epoch (32 rows) and half of the next, and little to score.
KEPT = (
  ALONE,
  "--config.generator.p_prime_length=0",
  "--config.train.steps=6",
  "--config.data.sampling=",
  "--config.evaluate.max_examples=1",
)
EIGHT = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
FIGURES = ("stage", "step", "split", "loss", "grad_norm", "perplexity", "accuracy")


def read(path):
  return json.loads(path.read_text())


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def lines(workdir):
  """The figures of the stage's lines."""
  found = [entry for entry in read_metrics(workdir) if entry["stage"] == "id_pt"]
  return [{name: entry[name] for name in FIGURES if name in entry} for entry in found]


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
  """configs/id_pt.py:smoke, run to its end: its workdir."""
  workdir = tmp_path_factory.mktemp("runs") / "id_pt"
  program.run(CONFIG, f"--workdir={workdir}")
  return workdir


@pytest.fixture(scope="module")
def kept_run(program, tmp_path_factory):
  """The same with encoder states that are kept."""
  folder = tmp_path_factory.mktemp("kept")
  cache = str(folder / "cache")
  program.finish(program.train(CONFIG, folder / "run", *KEPT, FROZEN_JAX_CACHE=cache))
  return folder / "run"


@pytest.fixture
def run_here(call, program, monkeypatch, tmp_path):
  """`run_here(workdir, *arguments)`: the program in this process -> standard output."""
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))

  def run(workdir, *arguments):
    status, out, err = call(*program.command(CONFIG, f"--workdir={workdir}", *arguments)[2:])
    assert status == 0, err
    return out

  return run


@pytest.fixture
def train_here(train_stages, program, monkeypatch, tmp_path):
  """`train_here(workdir, *arguments)`: the same till the adapters of the stages are saved."""
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.chdir(ROOT)

  def run(workdir, *arguments):
    train_stages(command.parse(program.command(CONFIG, *arguments)[1:]).config, workdir)

  return run


@pytest.fixture
def refused_here(refused, program):
  """`refused_here(workdir, *arguments)`: what its one `error:` line says."""

  def run(workdir, *arguments):
    return refused(*program.command(CONFIG, f"--workdir={workdir}", *arguments)[2:])

  return run


@pytest.fixture(scope="module")
def beside(lm, encoder):
  """The model with the text encoder alongside it."""
  return dataclasses.replace(lm, encoder=frozen_jax.load_encoder(str(encoder)))


# --- what it leaves


def test_the_results(run, tasks, beside):
  results = read(run / "results.json")
  assert results["method"] == "id_pt" and results["frozen_unchanged"] is True
  assert results["frozen_fingerprint"] == beside.fingerprint
  assert results["encoder_fingerprint"] == beside.encoder.fingerprint
  frozen = [*paths.flatten(beside.params).values(), *paths.flatten(beside.encoder.params).values()]
  assert results["frozen_parameters"] == sum(leaf.size for leaf in frozen)
  rows = table_rows(results)
  assert list(rows) == ["zero_shot", "shared", "id_pt"] and list(results["rows"]) == ["zero_shot"]
  assert results["baseline"] == {"name": "shared"} | rows["shared"]
  assert rows["id_pt"] == results["metrics"]
  assert 0 <= results["metrics"]["score"] <= 100 and results["metrics"]["examples"] == 8
  (held,) = results["held_out"].values()
  assert list(held) == list(rows) and "score" in held["id_pt"]
  assert list(read(run / "by_task.json")) == [str(tasks["test"]), str(tasks["held_out"])]


def test_both_stages_see_the_same_rows_and_learn(run):
  entries = read_metrics(run)
  seen = {
    stage: [
      (e["step"], e["tokens"], e["targets"])
      for e in entries
      if (e["stage"], e["split"]) == (stage, "train")
    ]
    for stage in ("shared", "id_pt")
  }
  assert len(seen["shared"]) == 3 and seen["shared"] == seen["id_pt"]
  assert all("encoder_cached" not in entry for entry in entries), "p' changes the states"
  found = [e["loss"] for e in lines(run) if e["split"] == "validation"]
  assert found[-1] < found[0] - 0.05
  first = [e["loss"] for e in entries if e["step"] == 0]
  assert first[0] == pytest.approx(first[1], rel=1e-6), "the generator starts as a map to zero"


def test_the_checksum_of_what_is_frozen_is_of_the_encoder_too(beside):
  leaves, shape = jax.tree.flatten(beside.encoder.params)
  leaves[3] = leaves[3].at[(0,) * leaves[3].ndim].add(1e-3)
  other = dataclasses.replace(beside.encoder, params=jax.tree.unflatten(shape, leaves))
  before = checksum(beside.frozen({}))
  assert checksum(beside.frozen({})) == before
  assert checksum(dataclasses.replace(beside, encoder=other).frozen({})) != before


def test_nothing_frozen_is_in_the_checkpoint_or_the_adapter(run, beside):
  trees = {"the best": load_best(run, "id_pt")[0], "adapter": read_adapter(run / "adapter")[0]}
  trees["adapter"] = trees["adapter"]["trained"]
  frozen = [*paths.flatten(beside.params).values(), *paths.flatten(beside.encoder.params).values()]
  frozen = [np.asarray(leaf) for leaf in frozen]
  for name, tree in trees.items():
    assert tree.keys() == {"generator", "prompt", "encoder_prompt"}, name
    assert tree["prompt"]["vectors"].shape == (4, beside.config.width)
    assert tree["encoder_prompt"]["vectors"].shape == (3, beside.encoder.config.width)
    for path, leaf in paths.flatten(tree).items():
      alike = [a for a in frozen if a.size > 1 and a.shape == leaf.shape and np.ptp(a)]
      assert not any(np.array_equal(a, leaf) for a in alike), path
  jax.tree.map(np.testing.assert_array_equal, *trees.values())
  leaves = list(paths.flatten(trees["adapter"]).values())
  results = read(run / "results.json")
  assert results["trainable_parameters"] == sum(leaf.size for leaf in leaves)
  # The trained tree, the best one and Adam's two moments, with a little for each array's files.
  trained, all_frozen = (sum(leaf.nbytes for leaf in part) for part in (leaves, frozen))
  (folder,) = (run / "checkpoints" / "id_pt").iterdir()
  size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  assert results["stages"]["id_pt"]["checkpoint_bytes"] == size
  assert size < 4 * trained + 4 * 2048 * len(leaves) < size + all_frozen


# --- its adapter


def free_form(workdir):
  return [row for row in rows_of(workdir / "predictions.jsonl") if "choices" not in row]


def test_the_adapter_loads_its_encoder_and_answers_like_the_run(run, lm):
  assert lm.encoder is None
  adapter = frozen_jax.load_adapter(run, lm)
  rows = free_form(run)
  answers = adapter.generate([row["input"] for row in rows], max_new_tokens=16)
  assert answers == [row["prediction"] for row in rows] and len(set(answers)) > 1


def test_every_mode_works_on_a_complete_run(run, run_here, lm, tmp_path):
  """Evaluate and predict give what the run gave, and so does an exported adapter."""
  workdir = shutil.copytree(run, tmp_path / "run")
  run_here(workdir, "--mode=evaluate")
  (evaluation,) = (workdir / "evaluations").iterdir()
  ours, theirs = (read(path / "results.json") for path in (evaluation, run))
  del theirs["metrics"]["tokens_per_second"]  # of the training
  assert table_rows(ours) == table_rows(theirs) and ours["held_out"] == theirs["held_out"]
  assert list(table_rows(ours)) == list(table_rows(theirs))
  assert read(evaluation / "by_task.json") == read(run / "by_task.json")
  name = "predictions.jsonl"
  assert (evaluation / name).read_bytes() == (run / name).read_bytes()
  for name in ("results.json", "predictions.jsonl", "by_task.json"):
    assert (workdir / name).read_bytes() == (run / name).read_bytes(), name

  rows = free_form(run)
  (tmp_path / "rows.txt").write_text("".join(f"{row['input']}\n" for row in rows))
  out = run_here(workdir, "--mode=predict", f"--config.predict.input={tmp_path / 'rows.txt'}")
  expected = [row["prediction"] for row in rows]
  assert [json.loads(line)["prediction"] for line in out.splitlines()] == expected

  run_here(workdir, "--mode=export", f"--config.export.folder={tmp_path / 'mine'}")
  adapter = frozen_jax.load_adapter(tmp_path / "mine", lm)
  assert adapter.generate([row["input"] for row in rows], max_new_tokens=16) == expected


def test_peft_has_no_form_for_it(run, refused_here):
  said = refused_here(run, "--mode=export", "--config.export.format=peft")
  assert "PEFT has no form for what id_pt trains" in said and "export.format=adapter" in said


def test_an_adapter_on_another_encoder_is_refused(run, lm, make_encoder_folder, refused_here):
  other = make_encoder_folder(num_hidden_layers=1)
  said = refused_here(run, "--mode=evaluate", f"--config.model.encoder={other}")
  assert "was trained with another text encoder" in said and str(other) in said
  loaded = frozen_jax.load_encoder(str(other))
  with pytest.raises(UserError, match="trained with another text encoder"):
    frozen_jax.load_adapter(run, dataclasses.replace(lm, encoder=loaded))


# --- encoder states that are kept


def test_in_the_first_epoch_no_text_is_known_and_then_every_one(kept_run):
  train = [entry for entry in read_metrics(kept_run) if entry["split"] == "train"]
  assert [(e["encoder_cached"], e["rows"]) for e in train] == [(0, 8)] * 4 + [(8, 8)] * 2


def test_with_and_without_kept_states_the_same_is_trained(
  kept_run, train_here, monkeypatch, tmp_path
):
  monkeypatch.setattr(stage, "text_states", lambda *arguments: None)
  train_here(tmp_path / "run", *KEPT)
  assert not (tmp_path / "cache").exists()
  assert all("encoder_cached" not in entry for entry in read_metrics(tmp_path / "run"))
  ours, theirs = (
    paths.flatten(read_adapter(path / "adapters" / "id_pt")[0])
    for path in (kept_run, tmp_path / "run")
  )
  assert ours.keys() == theirs.keys() and "trained/encoder_prompt/vectors" not in ours
  for path in ours:
    np.testing.assert_allclose(ours[path], theirs[path], atol=2e-5, err_msg=path)


# --- kills and devices


def kill(program, workdir, cache, whole, *arguments):
  """Kills a run as it has as many lines as chance says, fewer than there are; the seed of that."""
  seed = random.randrange(10**6)
  first = random.Random(seed).randrange(1, len(lines(whole)))
  process = program.train(CONFIG, workdir, *arguments, FROZEN_JAX_CACHE=str(cache))
  end = time.monotonic() + 240
  while len(lines(workdir)) < first and process.poll() is None:
    assert time.monotonic() < end
    time.sleep(0.005)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL, f"seed {seed}"
  assert not (workdir / "results.json").exists()
  return seed


def test_killed_and_resumed_it_trains_what_the_run_did(run, program, train_here, tmp_path):
  """The stage trains without the one before it as it does after it."""
  workdir = tmp_path / "run"
  seed = kill(program, workdir, tmp_path / "cache", run, ALONE)
  train_here(workdir, ALONE)
  assert lines(workdir) == lines(run), f"seed {seed}"
  name = "adapters/id_pt/adapter.safetensors"
  assert (workdir / name).read_bytes() == (run / name).read_bytes()


def test_killed_and_resumed_with_kept_states_it_is_the_run_that_was_not(
  kept_run, program, tmp_path
):
  workdir, cache = tmp_path / "run", tmp_path / "cache"
  seed = kill(program, workdir, cache, kept_run, *KEPT)
  program.finish(program.train(CONFIG, workdir, *KEPT, FROZEN_JAX_CACHE=str(cache)))
  assert lines(workdir) == lines(kept_run), f"seed {seed}"
  for name in ("adapter/adapter.safetensors", "predictions.jsonl"):
    assert (workdir / name).read_bytes() == (kept_run / name).read_bytes(), name


def assert_same_losses(ours, theirs):
  assert any(line["split"] == "train" for line in lines(theirs))
  for a, b in zip(lines(ours), lines(theirs), strict=True):
    assert (a["step"], a["split"]) == (b["step"], b["split"])
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a


def test_eight_devices_train_to_the_losses_of_one(run, train_here, tmp_path):
  train_here(tmp_path / "run", ALONE, *EIGHT)
  assert_same_losses(tmp_path / "run", run)


def test_eight_devices_keep_states_and_answer(kept_run, run_here, tmp_path):
  run_here(tmp_path / "run", *KEPT, "--config.data.held_out=", *EIGHT)
  assert_same_losses(tmp_path / "run", kept_run)
  cached = [e["encoder_cached"] for e in read_metrics(tmp_path / "run") if "encoder_cached" in e]
  assert cached == [0] * 4 + [8] * 2
  ours, theirs = (read(path / "results.json") for path in (tmp_path / "run", kept_run))
  assert ours["frozen_unchanged"] is True
  assert ours["encoder_fingerprint"] == theirs["encoder_fingerprint"]
  for name in ("score", "loss"):
    assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-4)
  name = "predictions.jsonl"
  assert (tmp_path / "run" / name).read_bytes() == (kept_run / name).read_bytes()
