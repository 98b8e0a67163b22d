"""Workdirs with the records of runs that never ran."""

import json

UNITS = {"exact_match": "percent", "loss": "nats per target", "perplexity": "exp of the loss"}
ANSWERS = {"1": "Lima", "2": "Oslo", "3": "Cairo", "4": "Rome"}


def row(exact_match, loss):
  bounds = {"exact_match_low": exact_match - 5.0, "exact_match_high": exact_match + 4.0}
  return {"exact_match": exact_match} | bounds | {"loss": loss, "examples": 4}


def record(seed, exact_match=60.0, loss=1.25, **changes):
  """As results.json of a training has it, format 2."""
  values = {
    "format": 2,
    "created": "2026-11-28T10:00:00+00:00",
    "version": "1.0.0",
    "commit": "abc123",
    "command": f"main.py --config=configs/recursive.py --config.seed={seed}",
    "device": "2 x cpu",
    "seed": seed,
    "method": "neural_recursion",
    "model": "smollm2-135m-instruct",
    "test": "world_facts/test",
    "metrics": row(exact_match, loss),
    "baseline": {"name": "zero_shot"} | row(40.0, 2.0),
    "rows": {"prompt": row(50.0, 1.5)},
    "table": {
      "rows": ["zero_shot", "prompt", "finetune"],
      "metrics": "finetune",
      "baseline": "zero_shot",
    },
    "paired": {
      "zero_shot": difference(exact_match - 40.0),
      "prompt": difference(exact_match - 50.0),
    },
    "frozen_unchanged": True,
    "frozen_fingerprint": "f00d",
    "units": UNITS,
  }
  return values | changes


def difference(points):
  return {"difference": points, "difference_low": points - 3.0, "difference_high": points + 2.0}


def predictions(right, ids="1234", question="Capital {}?"):
  """Rows of predictions.jsonl; right: the ids of questions with the accepted answer."""
  return [
    {
      "id": id,
      "input": question.format(id),
      "prediction": ANSWERS[id] if id in right else "no idea",
      "answers": [ANSWERS[id]],
    }
    for id in ids
  ]


def write_run(folder, values, config=None, rows=None):
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps(values))
  if config is not None:
    (folder / "config.json").write_text(json.dumps(config))
  if rows is not None:
    (folder / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
  return folder


def config(seed, **changes):
  base = {"seed": seed, "train": {"steps": 300}, "mesh": {"data": 1}, "evaluation": ""}
  return base | {"predict": {"input": "-"}, "export": {"folder": ""}} | changes
