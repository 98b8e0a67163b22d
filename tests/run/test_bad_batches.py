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
