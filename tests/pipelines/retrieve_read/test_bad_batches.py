"""Batches of the re-ranker that are bad, and that do not come."""

import json
import threading

import pytest

from frozen_jax import run
from frozen_jax.core.errors import UserError
from frozen_jax.data.pairs import GroupBatches


@pytest.fixture
def failed(make_config, tmp_path):
  """`failed(**changes)`: the error by which the training of the re-ranker ends."""

  def train(**changes):
    with pytest.raises(UserError) as error:
      run.train(make_config(stop_after="re_ranker", **changes), tmp_path / "run")
    return str(error.value)

  return train


def test_the_texts_of_a_bad_batch_can_be_read(failed, files, tmp_path):
  said = failed(**{"reader.re_ranker.max_loss": 1e-6})
  assert "above reader.re_ranker.max_loss=1e-06, at step 1 of stage re_ranker" in said
  (path,) = (tmp_path / "run" / "reader").glob("training-*/bad_batch_re_ranker_1.jsonl")
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 2
  for row in rows:
    assert len(row["texts"]) > 1 and all("capital" in text for text in row["texts"])


def test_a_source_that_stalls_is_named(failed, files, monkeypatch):
  go = threading.Event()
  monkeypatch.setattr(GroupBatches, "_draw_batch", lambda *_: go.wait(60))
  said = failed(**{"data.timeout": 0.5})
  go.set()  # the threads that read ahead end, too
  assert said.startswith(f"no batch has come from {files['data.train']} with its passages for 1 s;")
