"""The table of plans: what is planned already is read, and a cell says what does not fit."""

import json

import pytest

from benchmarks import pod_plans

pytestmark = pytest.mark.unit


def stored(fits=True, seconds=(2.0, 1.0, 0.5)):
  times = dict(zip(("compute", "hbm", "ici"), seconds, strict=True))
  program = {
    "fits": fits,
    "bytes_per_chip": {"arguments": 1e9, "temporaries": 2.5e9},
    "seconds": times,
    "binds": "compute",
    "mfu": 0.731,
  }
  return {
    "config": "configs/recursive.py:llama3_8b",
    "topology": "v5p:4x4x8",
    "rows": 128,
    "cache_bytes_per_chip": 0.5e9,
    "programs": [{"name": "train_step", **program}, {"name": "decode_step", **program}],
  }


def run(tmp_path, capsys, plans):
  path = tmp_path / "plans.json"
  path.write_text(json.dumps(plans))
  chosen = ["--methods", "recursive", "--models", "llama3_8b", "--topologies", "v5p:4x4x8"]
  status = pod_plans.main([f"--json={path}", *chosen])
  return status, capsys.readouterr().out


def test_what_is_planned_already_is_not_planned_again(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(pod_plans, "plan", lambda *_: pytest.fail("planned again"))
  status, text = run(tmp_path, capsys, [stored()])
  assert status == 0
  row = "| `recursive:llama3_8b` | v5p:4x4x8 | yes | 3.5 |"
  assert f"{row} 2.00 | 1.00 | 0.50 | products | 0.73 |" in text
  assert f"{row} 0.50 | 2000.0 | 128 |" in text


def test_what_does_not_fit_has_no_times_and_status_1(tmp_path, capsys):
  status, text = run(tmp_path, capsys, [stored(False, (0.0, 0.0, 0.0))])
  assert status == 1
  assert "| no | 3.5 | - | - | - | - | - |" in text


def test_a_new_plan_is_kept(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(pod_plans, "plan", lambda config, topology: stored())
  assert run(tmp_path, capsys, [])[0] == 0
  assert len(json.loads((tmp_path / "plans.json").read_text())) == 1
