"""The file for people beside a batch whose update was not applied."""

import json


def test_it_says_which_rows_they_are(refused_run, tmp_path):
  said = refused_run("prompt_tuning.py:smoke", "--config.train.max_loss=0.001")
  (path,) = (tmp_path / "run").glob("bad_batch_*.jsonl")
  assert f"bad_batch_prompt_1.npz, its texts in {path.name}" in said
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 8 == len({row["id"] for row in rows})
  for row in rows:
    assert list(row) == ["id", "prompt", "answer"]
    assert "?" in row["prompt"] and row["answer"].endswith("<|end|>")
    assert row["prompt"].endswith("Answer:") and len(row["answer"]) > len("<|end|>")


def test_a_run_goes_back_as_often_as_it_may(refused_run, tmp_path):
  """With other rows each time, whose losses are all too large."""
  how = ("--config.train.max_loss=0.001", "--config.train.on_nonfinite=rollback")
  said = refused_run("prompt_tuning.py:smoke", *how)
  assert "at step 1 of stage prompt, after 3 roll-backs (train.max_rollbacks)" in said
  assert "(step 0 is saved; its batch is in" in said
  paths = list((tmp_path / "run").glob("bad_batch_*.jsonl"))
  assert {path.stem for path in paths} == {f"bad_batch_prompt_1{n}" for n in ("", "-1", "-2", "-3")}
  ids = [[json.loads(line)["id"] for line in path.read_text().splitlines()] for path in paths]
  assert len(ids) == 4 and len({tuple(one) for one in ids}) == 4
