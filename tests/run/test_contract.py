"""What a complete run leaves in its workdir: the files and keys that other programs rely on."""

import datetime
import hashlib
import importlib.metadata
import json
import re
import shutil
import statistics

import numpy as np
import PIL.Image
import pytest

from frozen_jax.core import paths
from frozen_jax.models.adapter_folder import read_adapter
from frozen_jax.run.results.records import table_rows
from frozen_jax.training.checkpoints import load_best
from frozen_jax.training.metrics import read_metrics
from tests.processes import ROOT, start

RESULTS = {
  *("format", "created", "version", "command", "device", "seed", "units"),
  *("method", "model", "test", "metrics", "baseline", "table"),
  *("frozen_fingerprint", "frozen_unchanged", "frozen_parameters"),
  *("trainable_parameters", "steps", "stages", "seconds"),
}
STEPS = {
  "prompt_run": {"prompt": 3},
  "recursive_run": dict.fromkeys(("prompt", "baseline", "late_prompt", "control", "finetune"), 3),
}
ROWS = {
  "prompt_run": ["zero_shot", "prompt"],
  "recursive_run": ["zero_shot", *STEPS["recursive_run"]],
}


@pytest.fixture(params=STEPS)
def run(request):
  found = request.getfixturevalue(request.param)
  found.steps, found.rows = STEPS[request.param], ROWS[request.param]
  return found


def results(run):
  return json.loads((run.workdir / "results.json").read_text())


def test_the_files(run):
  names = {path.name for path in run.workdir.iterdir()}
  assert names == {
    ".lock",
    "adapter",
    "adapters",
    "checkpoints",
    "config.json",
    "metrics.jsonl",
    "predictions.jsonl",
    "report.png",
    "results.json",
  }
  assert {path.name for path in (run.workdir / "adapters").iterdir()} == set(run.steps)


def test_the_config_is_as_resolved(run, tiny):
  config = json.loads((run.workdir / "config.json").read_text())
  assert config["model"]["name"] == str(tiny)
  assert config["prompt"]["length"] == 4
  assert config["stage_order"] == list(run.steps)
  assert set(config["stages"]) == set(run.steps)


def test_results(run, tiny, lm):
  found = results(run)
  assert set(found) >= RESULTS
  *_, last = run.steps
  assert found["method"] == ("prompt_tuning" if last == "prompt" else "neural_recursion")
  assert found["model"] == str(tiny)
  assert found["frozen_unchanged"] is True
  assert found["frozen_fingerprint"] == lm.fingerprint
  assert found["frozen_parameters"] == sum(a.size for a in paths.flatten(lm.params).values())
  assert found["steps"] == run.steps[last]
  assert found["seconds"] > 0
  assert {n: s["steps"] for n, s in found["stages"].items()} == run.steps
  for name in ("exact_match", "f1", "accuracy"):
    assert 0 <= found["metrics"][name] <= 100
  assert found["metrics"]["perplexity"] == pytest.approx(np.exp(found["metrics"]["loss"]))
  assert found["metrics"]["tokens_per_second"] > 0
  assert {n: s["method"] for n, s in found["stages"].items()}[last] == found["method"]
  empty = {key for key, value in found.items() if value in ("", None, {})}
  assert empty <= {"rows"}  # of one stage there are none


def test_a_row_of_the_table_is_kept_once(run):
  found = results(run)
  *_, last = run.steps
  baseline = {"prompt": "zero_shot", "finetune": "baseline"}[last]
  assert found["table"] == {"rows": run.rows, "metrics": last, "baseline": baseline}
  assert found["baseline"]["name"] == baseline
  others = [name for name in run.rows if name not in (last, baseline)]
  assert list(found.get("rows", {})) == others
  rows = table_rows(found)
  assert list(rows) == run.rows
  assert rows[last] == found["metrics"]
  assert {"name": baseline} | rows[baseline] == found["baseline"]
  for name, figures in rows.items():
    assert figures["examples"] == found["metrics"]["examples"]
    method = found["stages"].get(name, {}).get("method")
    (line,) = [
      line.removeprefix(f"{name}: {method} " if method else f"{name} ")
      for line in run.out.partition("\n\n")[0].splitlines()
      if line.startswith(f"{name}: {method} " if method else f"{name} ")
    ]
    assert line.split()[0] == f"{figures['exact_match']:.3f}"


def test_every_row_has_figures_of_each_kind_of_question(run):
  found = results(run)
  assert list(found["by_kind"]) == ["1_hop", "2_hops"]
  for own in found["by_kind"].values():
    assert list(own["rows"]) == run.rows and list(own["paired"]) == list(found["paired"])
  for name, figures in table_rows(found).items():
    kinds = [own["rows"][name] for own in found["by_kind"].values()]
    assert sum(one["examples"] for one in kinds) == figures["examples"]
    summed = sum(one["examples"] * one["exact_match"] for one in kinds)
    assert summed == pytest.approx(figures["examples"] * figures["exact_match"])


def test_the_record_says_where_it_comes_from(run):
  found = results(run)
  assert found["format"] == 2
  created = datetime.datetime.fromisoformat(found["created"])
  assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(hours=1)
  assert found["version"] == importlib.metadata.version("frozen_jax")
  assert " -m frozen_jax.main " in found["command"]
  assert f"--workdir={run.workdir}" in found["command"]
  assert found["device"] == "1 x cpu" and found["seed"] == 0
  assert found["test"] == "world_facts/test"
  assert found["units"]["exact_match"] == "percent"
  assert found["units"]["loss"] == "nats per target"
  assert "rouge_l" not in found["units"], "no row has it"
  written = (run.workdir / "predictions.jsonl").read_bytes()
  assert found["predictions_sha256"] == hashlib.sha256(written).hexdigest()


def test_trained_parameters_are_counted(run):
  tree, _ = read_adapter(run.workdir / "adapter")
  count = sum(a.size for a in paths.flatten(tree["trained"]).values())
  assert results(run)["trainable_parameters"] == count
  assert tree["trained"]["prompt"]["vectors"].shape == (4, 32)


def test_metrics_hold_each_step_once(run):
  lines = read_metrics(run.workdir)
  assert len(lines) == len((run.workdir / "metrics.jsonl").read_text().splitlines())
  train = [(line["stage"], line["step"]) for line in lines if line["split"] == "train"]
  assert train == [(stage, s) for stage, n in run.steps.items() for s in range(1, n + 1)]
  for line in lines:
    assert list(line)[:3] == ["stage", "step", "split"]
    assert np.isfinite(line["loss"])
    if line["split"] == "train":
      assert float(np.float32(line["loss"])) == line["loss"], "the bits of the device's float32"
  for stage, steps in run.steps.items():
    here = [
      line["step"] for line in lines if (line["stage"], line["split"]) == (stage, "validation")
    ]
    assert here == sorted({0, 2, steps})


def test_predictions(run):
  rows = [json.loads(line) for line in (run.workdir / "predictions.jsonl").open()]
  assert len(rows) == results(run)["metrics"]["examples"] > 0
  assert len({row["id"] for row in rows}) == len(rows)
  for row in rows:
    keys = {"id", "input", "kind", "prediction", "answers", "scores", "predictions"}
    keys |= {"loss", "targets", "losses"}
    assert set(row) == keys and row["kind"] in ("1_hop", "2_hops")
    assert isinstance(row["prediction"], str) and row["input"].endswith("?")
    assert row["answers"] and all(isinstance(answer, str) for answer in row["answers"])
    assert list(row["predictions"]) == run.rows[:-1]
    assert all(isinstance(prediction, str) for prediction in row["predictions"].values())
    assert set(row["losses"]) <= set(run.rows[:-1]) and row["targets"] > 0
  total = sum(row["loss"] * row["targets"] for row in rows)
  targets = sum(row["targets"] for row in rows)
  assert results(run)["metrics"]["loss"] == pytest.approx(total / targets, rel=1e-5)
  for name in ("exact_match", "f1"):
    mean = statistics.fmean(row["scores"][name] for row in rows)
    assert results(run)["metrics"][name] == pytest.approx(mean)


def test_the_report_is_a_picture_with_something_on_it(run):
  image = PIL.Image.open(run.workdir / "report.png")
  assert image.format == "PNG"
  width, height = image.size
  assert 600 <= width <= 4000 and 200 <= height <= 2000
  assert np.asarray(image.convert("L")).std() > 5


def test_a_checkpoint_holds_no_frozen_leaf(run, lm):
  frozen = {a.shape for a in paths.flatten(lm.params).values() if a.size > 100}
  frozen_bytes = sum(a.nbytes for a in paths.flatten(lm.params).values())
  for stage in run.steps:
    (folder,) = (run.workdir / "checkpoints" / stage).iterdir()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert results(run)["stages"][stage]["checkpoint_bytes"] == size
    tree, record = load_best(run.workdir, stage)
    leaves = paths.flatten(tree)
    assert {path.split("/")[0] for path in leaves} <= {"prompt", "connector"}
    assert not frozen & {leaf.shape for leaf in leaves.values()}
    assert record["frozen_fingerprint"] == lm.fingerprint
    trained = sum(leaf.nbytes for leaf in leaves.values())
    # The trained tree, the best one, the best before the last step and Adam's two moments, with a
    # little for the files; a prompt is so small here that the frozen tree would show at once.
    assert size < 5 * trained + 80_000 < 5 * trained + frozen_bytes


def test_the_best_tree_is_the_adapter(run):
  *_, last = run.steps
  best = paths.flatten(load_best(run.workdir, last)[0])
  kept = paths.flatten(read_adapter(run.workdir / "adapter")[0]["trained"])
  assert best.keys() == kept.keys()
  for path, leaf in best.items():
    np.testing.assert_array_equal(leaf, kept[path], err_msg=path)


def test_every_stage_has_its_adapter(run, lm):
  for stage, method in ((n, s["method"]) for n, s in results(run)["stages"].items()):
    tree, info = read_adapter(run.workdir / "adapters" / stage)
    assert info["method"] == method and info["frozen_fingerprint"] == lm.fingerprint
    best = paths.flatten(load_best(run.workdir, stage)[0])
    found = paths.flatten(tree["trained"])
    assert best.keys() == found.keys()
    for path, leaf in best.items():
      np.testing.assert_array_equal(leaf, found[path], err_msg=path)
  for name in ("adapter.json", "adapter.safetensors"):
    last = run.workdir / "adapters" / stage / name
    assert last.read_bytes() == (run.workdir / "adapter" / name).read_bytes()


def test_it_says_what_comes_next(run):
  *table, closing, asked = run.out.strip().splitlines()
  assert table[0].split()[:3] == ["exact_match", "95%", "f1"]
  assert closing.startswith(f"The adapter is in {run.workdir}/adapter")
  assert closing.endswith("Ask it:") and "frozen_jax.tools.ask" in asked and len(asked) < 160


def test_the_progress_is_tidy(run):
  """No bars where there is no terminal: lines of our own, each with its time, and nothing else."""
  assert "\r" not in run.err
  screens = [line.strip() for line in run.err.splitlines() if line.strip()]
  for stage, steps in run.steps.items():
    assert any(f" {stage}: 0 of {steps} steps, compiling" in s for s in screens)
    assert any(f" {stage}: {steps} of {steps} steps, loss" in s for s in screens)
  assert all(s[:9].replace(":", "").strip().isdigit() for s in screens), screens


def test_a_row_is_said_as_soon_as_it_is_evaluated(run):
  for row, figures in table_rows(results(run)).items():
    said = f"exact match {figures['exact_match']:.3f}, loss {figures['loss']:.3f}"
    assert re.search(rf" evaluated {row} in \d+ s: {re.escape(said)}\n", run.err), row


def test_the_lm_without_training_is_scored_before_anything_is_trained(run):
  """So that the first lines of the table are there within minutes."""
  first, *_ = run.steps
  begins = run.err.index(f" {first}: 0 of ")
  for row in table_rows(results(run)):
    scored = run.err.index(f" evaluated {row} ")
    assert (scored < begins) == row.startswith("zero_shot"), row


def snapshot(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_again_it_says_that_it_is_complete(program, prompt_run):
  before = snapshot(prompt_run.workdir)
  out, err = program.finish(program.train("prompt_tuning.py:smoke", prompt_run.workdir))
  assert out == f"The run in {prompt_run.workdir} is complete.\n{prompt_run.out}"
  assert snapshot(prompt_run.workdir) == before


def test_the_default_workdir(program, prompt_run, tmp_path):
  """runs/NAME-variant below the current folder: the complete run is found there."""
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  shutil.copytree(prompt_run.workdir, tmp_path / "runs" / "prompt_tuning-smoke")
  process = start(*program.command("prompt_tuning.py:smoke"), cwd=tmp_path)
  out, _ = program.finish(process)
  assert out.startswith("The run in runs/prompt_tuning-smoke is complete.\n")
