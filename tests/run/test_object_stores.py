"""A whole run whose workdir, data and model are on an object store, against emulators."""

import json

import pytest

from frozen_jax.backbones import assemble
from frozen_jax.core.errors import StoreError
from frozen_jax.core.files import upload_folder
from frozen_jax.core.object_store import StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.tools import compare, inspect
from frozen_jax.training.checkpoint_folders import COMMITTED, complete_checkpoints
from tests.processes import start
from tests.run.settings_cases import QUESTIONS
from tests.run.task_files import lines_file

CONFIG = "prompt_tuning.py:smoke"
# The command of `sys.argv`, which waits to be killed in the middle of its second checkpoint.
WAIT_WITHIN_A_CHECKPOINT = """
import sys
from frozen_jax import main
from frozen_jax.core.object_store import StorePath
upload = StorePath.upload
def waiting(path, source):
  if path.name == "orbax.checkpoint" and path.parent.name == "00000004":
    print("half uploaded", flush=True)
    sys.stdin.read()
  upload(path, source)
StorePath.upload = waiting
sys.exit(main.main(sys.argv))
"""


@pytest.fixture(scope="module")
def inputs(store, tiny, tmp_path_factory):
  """The flags of a run whose model and data are on the store."""
  rows = lines_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", *QUESTIONS)
  bucket = user_path(store.url)
  upload_folder(tiny, bucket / "models" / "tiny")
  (bucket / "data" / "rows.jsonl").upload(rows)
  splits = ("train", "validation", "test")
  return (
    f"--config.model.name={store.url}/models/tiny",
    *(f"--config.data.{split}={store.url}/data/rows.jsonl" for split in splits),
    "--config.train.steps=6",
    "--config.train.batch_size=4",
    "--config.train.checkpoint_every=2",
    "--config.train.validate_every=3",
  )


@pytest.fixture
def run(call, program, inputs):
  """`run(workdir, *flags)`: the command in this process -> (standard output, its lines of errors);
  it is done.
  """

  def done(workdir, *flags):
    given = program.command(CONFIG, *inputs, f"--workdir={workdir}", *flags)
    status, out, err = call(*given[2:])
    assert status == 0, "\n".join(err)
    return out, err

  return done


def figures(workdir):
  """The lines of metrics.jsonl."""
  text = (user_path(workdir) / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def kill_within_a_checkpoint(program, command, refused):
  """Starts the run, asks for it a second time, and kills it where it is half through a save."""
  process = start("-c", WAIT_WITHIN_A_CHECKPOINT, *command, devices=8)
  line = process.stdout.readline()
  assert line == "half uploaded\n", process.communicate()
  assert f"in use by a run, process {process.pid} on host" in refused(*command)
  process.kill()
  process.communicate()


def test_killed_resumed_and_used(store, inputs, program, refused, run, tmp_path, capsys):
  workdir = user_path(f"{store.url}/runs/one")
  stage = workdir / "checkpoints" / "prompt"
  command = program.command(CONFIG, *inputs, f"--workdir={workdir}")[2:]
  kill_within_a_checkpoint(program, command, refused)
  assert [path.name for path in complete_checkpoints(stage)] == ["00000002"]
  assert (stage / "00000004").is_dir()

  # --- resumed, with the losses of a run that was not killed
  assert any("resumes from step 2" in line for line in run(workdir)[1])
  run(tmp_path / "local")
  assert figures(workdir) == figures(tmp_path / "local")
  assert [path.name for path in stage.iterdir()] == ["00000006"]
  assert (stage / "00000006" / COMMITTED).exists()
  assert not [path for path in workdir.iterdir() if path.name.startswith(".")]
  assert f"The run in {workdir} is complete" in run(workdir)[0]

  # --- evaluated, predicted, exported: reads and writes as before, so on one kind of store
  if store.scheme == "s3":
    return
  assert f"The record is in {workdir}/evaluations/rows." in run(workdir, "--mode=evaluate")[0]
  found = sorted(path.name for path in (workdir / "evaluations" / "rows").iterdir())
  assert found == ["config.json", "predictions.jsonl", "report.png", "results.json"]
  asked = f"--config.predict.input={store.url}/data/rows.jsonl"
  assert run(workdir, "--mode=predict", asked)[0] == (workdir / "predictions.jsonl").read_text()
  run(workdir, "--mode=export")
  names = {path.name for path in (workdir / "export").iterdir()}
  assert names == {"README.md", "adapter.json", "adapter.safetensors"}
  peft = ("--config.export.format=peft", f"--config.export.folder={tmp_path / 'peft'}")
  run(workdir, "--mode=export", *peft)
  assert f"reads no {store.scheme}://" in (tmp_path / "peft" / "README.md").read_text()

  # --- compared and inspected
  capsys.readouterr()
  assert compare.main([str(workdir), str(tmp_path / "local")]) == 0
  assert "1. one" in capsys.readouterr().out
  assert inspect.main([f"{store.url}/models/tiny"]) == 0
  assert "llama, decoder" in capsys.readouterr().out


def test_a_store_that_fails_leaves_the_last_checkpoint(store, inputs, program, call):
  workdir = user_path(f"{store.url}/runs/fails")
  command = program.command(CONFIG, *inputs, f"--workdir={workdir}")[2:]
  upload = StorePath.upload

  def failing(path, source):
    if "00000004" in path.parts:
      raise StoreError(f"{path.bucket} fails (503)")
    upload(path, source)

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(StorePath, "upload", failing)
    status, _, lines = call(*command)
  assert status == 1 and lines[-1] == f"error: {store.url} fails (503)"
  assert "Traceback" not in "\n".join(lines)
  (kept,) = complete_checkpoints(workdir / "checkpoints" / "prompt")
  assert kept.name == "00000002"


def test_what_is_wrong_with_a_store_is_said_before_any_weight_is_read(
  store, inputs, program, refused, tmp_path, monkeypatch
):
  monkeypatch.setattr(assemble, "load_params", None)
  missing = f"{store.scheme}://nothing-here"
  for flags, said in (
    ((f"--workdir={missing}/run",), f"there is no bucket {missing}"),
    (("--config.tensorboard=true", f"--workdir={store.url}/t"), "TensorBoard cannot write to"),
    ((f"--config.data.train={missing}/x.jsonl",), "there is no file"),
    ((f"--config.model.name={missing}/tiny",), "there is no model"),
    ((f"--config.init_from={missing}/run",), "no such folder"),
    (("--mode=evaluate", f"--workdir={store.url}/none"), "no such folder"),
    (("--workdir=az://runs/x",), "there is no store az://"),
  ):
    command = program.command(CONFIG, f"--workdir={tmp_path / 'run'}", *inputs, *flags)
    assert said in refused(*command[2:])
