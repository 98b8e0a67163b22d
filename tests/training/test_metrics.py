import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.training.metrics import MetricsWriter, read_metrics


def lines(folder):
  return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_line_holds_full_precision(tmp_path):
  loss = jnp.float32(1) / 3
  MetricsWriter(tmp_path / "new").write("prompt", 3, "train", loss=loss, rows=np.int32(4))
  (entry,) = read_metrics(tmp_path / "new")
  assert list(entry) == ["stage", "step", "split", "loss", "rows"]
  assert np.float32(entry["loss"]) == np.asarray(loss)
  assert json.dumps(entry["loss"]) == repr(float(loss))
  assert entry["rows"] == 4


def test_what_is_not_finite_stays_json(tmp_path):
  MetricsWriter(tmp_path).write("prompt", 1, "validation", loss=math.nan, perplexity=math.inf)
  assert read_metrics(tmp_path) == [
    {"stage": "prompt", "step": 1, "split": "validation", "loss": None, "perplexity": None}
  ]


def written(folder):
  writer = MetricsWriter(folder)
  for stage in ("prompt", "finetune"):
    for step in (1, 2, 3):
      writer.write(stage, step, "train", loss=step)
    writer.write(stage, 2, "validation", loss=2)
  return writer


def kept(folder):
  return [(e["stage"], e["step"], e["split"]) for e in read_metrics(folder)]


def test_truncating_drops_only_what_comes_later_in_that_stage(tmp_path):
  writer = written(tmp_path)
  before = kept(tmp_path)
  writer.truncate("finetune", 2)
  assert kept(tmp_path) == [k for k in before if k != ("finetune", 3, "train")]
  writer.truncate("prompt", -1)
  assert {stage for stage, _, _ in kept(tmp_path)} == {"finetune"}
  writer.truncate("finetune", 2, rewritten=("validation",))
  assert kept(tmp_path) == [("finetune", 1, "train"), ("finetune", 2, "train")]
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_cut_off_in_the_middle_goes(tmp_path):
  writer = written(tmp_path)
  whole = lines(tmp_path)
  with writer.path.open("a") as file:
    file.write('{"stage": "finetune", "step": 2, "sp')
  assert len(read_metrics(tmp_path)) == len(whole)
  writer.truncate("finetune", 3)
  writer.write("finetune", 4, "train", loss=4)
  assert lines(tmp_path)[:-1] == whole
  assert json.loads(lines(tmp_path)[-1])["step"] == 4


def test_an_interrupted_truncation_leaves_the_whole_file(tmp_path, monkeypatch):
  writer = written(tmp_path)
  before = lines(tmp_path)
  monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    writer.truncate("prompt", -1)
  assert lines(tmp_path) == before


def test_only_the_first_host_writes(tmp_path, monkeypatch):
  monkeypatch.setattr("frozen_jax.training.metrics.is_first_host", lambda: False)
  writer = MetricsWriter(tmp_path / "workdir", tensorboard=True)
  writer.write("prompt", 1, "train", loss=1.0)
  writer.truncate("prompt", 0)
  assert not (tmp_path / "workdir").exists()


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
  """With a stand-in for tensorboardX, which is an extra."""
  seen = []

  class Writer:
    def __init__(self, folder):
      seen.append(folder)

    def add_scalar(self, name, value, step):
      seen.append((name, value, step))

    def close(self):
      seen.append("closed")

  monkeypatch.setitem(sys.modules, "tensorboardX", type(sys)("tensorboardX"))
  sys.modules["tensorboardX"].SummaryWriter = Writer
  writer = MetricsWriter(tmp_path, tensorboard=True)
  writer.write("prompt", 2, "train", loss=0.5, note="text", bad=math.nan)
  writer.close()
  assert seen == [str(tmp_path / "tensorboard"), ("prompt/train/loss", 0.5, 2), "closed"]


def test_tensorboard_that_is_not_installed_is_the_users_error(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(UserError, match=r"frozen_jax\[tensorboard\]"):
    MetricsWriter(tmp_path, tensorboard=True)
