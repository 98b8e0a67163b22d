"""The table of several runs at the terminal, in Markdown, CSV and JSON."""

import csv
import json
import math
import re

import pytest

from frozen_jax.run.results.comparison_formats import CSV_COLUMNS
from tests.tools.run_records import config, predictions, record, write_run


def squeezed(text):
  """The lines with one space between words."""
  return [" ".join(line.split()) for line in text.splitlines()]


def test_csv(output, tmp_path, seeds):
  alone = write_run(tmp_path / "alone", record(0, method="lora"), rows=predictions("1"))
  for run in seeds:
    rows = "".join(json.dumps(one) + "\n" for one in predictions("12"))
    (run / "predictions.jsonl").write_text(rows)
  reader = csv.DictReader(output(*seeds, alone, "--format=csv").splitlines())
  lines = {(one["group"], one["row"], one["metric"]): one for one in reader}
  assert tuple(reader.fieldnames) == CSV_COLUMNS
  assert CSV_COLUMNS[:5] == ("group", "row", "metric", "n", "mean")
  title = "rec-0, rec-1, rec-2"
  one = lines[title, "finetune", "exact_match"]
  assert (one["n"], float(one["mean"]), one["low"], one["high"]) == ("3", 54.0, "", "")
  assert float(one["standard_error"]) == pytest.approx(4 / math.sqrt(3))
  one = lines["alone", "prompt", "exact_match"]
  assert (one["n"], one["standard_error"], one["low"], one["high"]) == ("1", "", "45.0", "54.0")
  one = lines[title, "finetune - prompt", "exact_match_difference"]
  assert (one["n"], float(one["mean"])) == ("3", 4.0)
  one = lines[f"alone - {title}", "finetune - finetune", "exact_match_difference"]
  assert (one["n"], float(one["mean"])) == ("", -25.0)
  assert len(lines) == 2 * (3 * 2 + 2) + 1  # groups x (rows x metrics + differences), and between


def test_terminal(output, tmp_path, seeds):
  alone = write_run(tmp_path / "alone", record(0, method="lora"))
  text = output(*seeds, alone)
  lines = squeezed(text)
  assert "rec-1: seed 1, 2026-11-28T10:00:00+00:00, 2 x cpu, version 1.0.0 abc123" in text
  assert "main.py --config=configs/recursive.py --config.seed=1" in text
  assert "n = 3 runs (seeds 0, 1, 2)" in text
  assert "finetune 3 54.00 ± 2.31 2.000 ± 0.577" in lines
  assert "finetune 1 60.0 (55.0 to 64.0) 1.250" in lines
  assert "finetune - zero_shot 3 +14.00 ± 2.31" in lines
  assert "finetune - zero_shot 1 +20.0 (+17.0 to +22.0)" in lines
  assert "percent nats per target" in lines


def test_a_wide_table_goes_on_below(output, tmp_path):
  names = ("score", "exact_match", "f1", "rouge_l", "accuracy", "loss", "perplexity", "passes")
  metrics = dict.fromkeys(names, 1.0)
  metrics |= {f"{name}_{bound}": 1.0 for name in names for bound in ("low", "high")}
  long = {"command": f"main.py --config.data.train={'very-' * 40}long"}
  text = output(write_run(tmp_path / "wide", record(0, metrics=metrics, **long)))
  assert max(map(len, text.splitlines())) <= 100
  headers = [line.split() for line in text.splitlines() if line.startswith("row ")]
  shown = [name for line in headers for name in line if name in names]
  assert shown == list(names) and len(headers) > 1
  assert f"(continued: columns {', '.join(headers[1][1:])})" in text
  assert len(re.findall(r"^finetune +[1-9]", text, re.M)) == len(headers)


def test_a_metric_that_some_seeds_lack_is_shown_with_its_n(output, tmp_path):
  lacking = record(1)
  del lacking["metrics"]["loss"]
  runs = [
    write_run(tmp_path / "a", record(0), config(0)),
    write_run(tmp_path / "b", lacking, config(1)),
  ]
  assert "finetune 2 60.00 ± 0.00 1.250 (n = 1)" in squeezed(output(*runs))


def test_markdown(output, tmp_path, seeds):
  piped = record(0, method="lora", command="main.py '--config.a=x|y'")
  alone = write_run(tmp_path / "alone", piped, rows=predictions("1"))
  other = write_run(tmp_path / "other", record(1, model="gpt2"), rows=predictions("12"))
  text = output(*seeds, alone, other, "--format=markdown")
  sources, *groups = text.split("\n## ")
  tables = [line for line in sources.splitlines() if line.strip()]
  assert tables[0] == "| run | seed | command | device | date | version |"
  assert len(tables) == 2 + 5
  assert (
    "| rec-2 | 2 | `main.py --config=configs/recursive.py --config.seed=2` | 2 x cpu"
    " | 2026-11-28T10:00:00+00:00 | 1.0.0 abc123 |"
  ) in tables
  assert r"`main.py '--config.a=x\|y'`" in tables[5]
  assert [group.splitlines()[0] for group in groups] == [
    "1. rec-0, rec-1, rec-2",
    "2. alone",
    "3. other",
    "Between groups",
  ]
  assert "| row | n | exact_match (percent) | loss (nats per target) |" in groups[0]
  assert "| finetune | 3 | 54.00 ± 2.31 | 2.000 ± 0.577 |" in groups[0]
  assert "| finetune - prompt | 1 | +10.0 (+7.0 to +12.0) |" in groups[1]
  assert "| 3. finetune - 2. finetune | +25.0 (" in groups[3]
  assert "- no difference between rec-0, rec-1, rec-2 and the others: rec-0 has no" in groups[3]
  for block in text.split("\n\n"):
    if block.startswith("|"):
      assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_json_has_no_nan(output, tmp_path):
  text = output(write_run(tmp_path / "a", record(0, loss=math.nan)), "--format=json")
  (group,) = json.loads(text, parse_constant=pytest.fail)["groups"]
  assert group["tables"][0]["rows"]["finetune"]["loss"]["mean"] is None
