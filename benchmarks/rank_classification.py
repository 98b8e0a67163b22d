"""Rank classification by an untouched SmolLM2-135M against a loop over the choices.

`python -m benchmarks.rank_classification --data=FILE`: JSON lines {input, choices, labels}, gzipped
or not, such as the tasks of BIG-bench. 200 rows spread over the file are scored by
`models.choice_scoring` and by a loop that puts every choice through the model alone
(`benchmarks.choices`), both in float32 and compiled before they are measured. Each side is a
process of its own; they work in turn, and ratios are taken pair by pair.
Ends with an error where any log-likelihood differs by more than 1e-4 of a nat. Memory is the peak
of the whole process. `--json=FILE` also writes the rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from benchmarks import pairs
from benchmarks.training_step import machine
from frozen_jax.core.user_path import user_path

TOLERANCE = 1e-4  # nats


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data", type=user_path, required=True, help="rows with choices")
  parser.add_argument("--rows", type=int, default=200, help="how many of them")
  parser.add_argument("--pairs", type=int, default=3, help="measured passes over them a side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  options = parser.parse_args()
  if not options.data.is_file():
    parser.error(f"there is no file {options.data}; name one with --data")
  row = measure(options.data, options.rows, options.pairs)
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": [row]}, indent=2) + "\n")
  if row["largest_difference"] > TOLERANCE:
    raise SystemExit(f"the likelihoods differ by up to {row['largest_difference']:.2e} nats")


def measure(data: pathlib.Path, rows: int, count: int) -> dict[str, Any]:
  """Both sides over so many rows of a file, in turn -> the row of the contract."""
  with tempfile.TemporaryDirectory() as folder:
    results = [f"{folder}/{side}.npz" for side in ("ours", "peer")]
    given = "benchmarks.choices", str(data), str(rows)
    with (
      pairs.Side(given[0], "side_by_side", *given[1:], results[0]) as ours,
      pairs.Side(given[0], "one_by_one", *given[1:], results[1]) as peer,
    ):
      measured = pairs.compare(ours, peer, count, warm=1)
    first = [np.load(result) for result in results]
  values = [found["log_likelihoods"] for found in first]
  low, ratio, high = measured.ratios()
  row = {
    "work": "rank_classification",
    "ours": rows / measured.median(0),
    "peer": rows / measured.median(1),
    "peer_name": "each choice alone",
    "unit": "rows/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "rows": rows,
    "choices": len(values[0]),
    "largest_difference": float(np.abs(values[0] - values[1]).max()),
    "ours_first_seconds": float(first[0]["first_seconds"]),
    "peer_first_seconds": float(first[1]["first_seconds"]),
  }
  _show(row)
  return row


def _show(row: dict[str, Any]) -> None:
  print(
    f"{row['work']}: {row['ratio']:.2f} times {row['peer_name']} "
    f"(from {row['ratio_min']:.2f} to {row['ratio_max']:.2f} over the pairs), "
    f"{row['memory_ratio']:.2f} of its memory"
  )
  for side in ("ours", "peer"):
    print(
      f"  {side:5} {row[side]:8.2f} {row['unit']}  "
      f"first pass, with compiling, {row[side + '_first_seconds']:.0f} s"
    )
  print(
    f"  {row['choices']} choices of {row['rows']} rows; the log-likelihoods differ by at most "
    f"{row['largest_difference']:.1e} nats",
    flush=True,
  )


if __name__ == "__main__":
  main()
