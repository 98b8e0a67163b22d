"""A disk that fills up at any file of a run: the error line, and the last checkpoint whole."""

import io
import shutil

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.run import train
from frozen_jax.training.checkpoint_folders import saved_step
from frozen_jax.training.metrics import read_metrics
from tests.run.settings_cases import with_value
from tests.run.task_files import lines_file

FIGURES = ("stage", "step", "split", "loss")


@pytest.fixture
def fill(monkeypatch):
  """`fill(name, when)`: files whose name has `name` are on a full disk once `when()` is true."""
  real = io.open

  def start(name, when=lambda: True):
    def opened(file, mode="r", *arguments, **named):
      written = set(mode) & set("wax+")
      full = written and name in str(file).rpartition("/")[2] and when()
      return real("/dev/full" if full else file, mode, *arguments, **named)

    monkeypatch.setattr(io, "open", opened)

  yield start


def figures(workdir):
  return [{name: line.get(name) for name in FIGURES} for line in read_metrics(workdir)]


def test_metrics_that_cannot_be_written(trained_stage, fill, train_stages, tmp_path, monkeypatch):
  config, workdir = trained_stage
  config = with_value(config, "train.log_every", 1)
  fill("metrics.jsonl", lambda: saved_step(tmp_path) == 2)
  with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No space left"):
    train(config, tmp_path)
  assert saved_step(tmp_path) == 2
  monkeypatch.undo()
  train_stages(config, tmp_path)
  assert figures(tmp_path)[-2:] == figures(workdir)[-2:], "it goes on from there"


@pytest.mark.parametrize(
  "name", ["config.json", "adapter.safetensors", "predictions.jsonl", "results.json"]
)
def test_a_file_that_cannot_be_written_at_the_end(trained_stage, fill, tmp_path, name):
  config, workdir = trained_stage
  workdir = shutil.copytree(workdir, tmp_path / "run")
  fill(name)
  with pytest.raises(UserError, match=rf"cannot write .*{name}: No space left on device; free"):
    train(config, workdir)
  assert saved_step(workdir) == 3 and figures(workdir) == figures(trained_stage[1])
  assert not (workdir / "results.json").exists()


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch, tmp_path):
  from frozen_jax.backbones.fetch import fetch_builtin
  from frozen_jax.data.builders.prepare import prepare
  from frozen_jax.retrieval.corpus import open_corpus

  (tmp_path / "file").touch()
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "file" / "cache"))
  passages = lines_file(tmp_path / "p.jsonl", {"id": "1", "title": "a", "text": "b"})
  uses = [
    lambda: prepare("world_facts"),
    lambda: open_corpus(passages),
    lambda: fetch_builtin("smollm2-135m-instruct"),
  ]
  for use in uses:
    with pytest.raises(UserError, match="FROZEN_JAX_CACHE"):
      use()
