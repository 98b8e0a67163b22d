"""A step of an 8B model on one accelerator against PEFT: `python -m benchmarks.accelerator`.

Llama 3 8B's shape with random weights in bfloat16; rows of 4,096 tokens of which every one but the
first is a target; prompt tuning (100 vectors) and LoRA (rank 8 on every matrix of the layers), each
with Adam. Each side is a process of its own on the same card; they step in turn, and ratios are
taken pair by pair. Tokens a second are text tokens; `use` is 4 FLOPs a parameter and text token as
a share of the faster side's matrix product in bfloat16. Memory is the peak on the card. Both sides
hold their own copy of the weights, 16 GB each:

  XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.accelerator --json=accelerator.json

`--model=tiny --length=64` tries the command out, on a CPU too, where torch takes minutes for the
matrix products in bfloat16. Needs `pip install -e '.[test]'`, and a torch and a jax for the card.
"""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from benchmarks import pairs
from benchmarks.accelerator_side import METHODS, MODELS
from benchmarks.training_step import machine, show
from frozen_jax.core.user_path import user_path

# Of the logarithm of the vocabulary, from which the loss of random weights does not lie far.
TOLERANCE = 0.15


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="llama3_8b", choices=MODELS, help="the shape")
  parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="trained how")
  parser.add_argument("--rows", type=int, default=1, help="of a batch")
  parser.add_argument("--length", type=int, default=4096, help="tokens of a row")
  parser.add_argument("--pairs", type=int, default=7, help="measured steps of each side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  options = parser.parse_args(arguments)
  rows = [_row(options, method) for method in options.methods]
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def _row(options: argparse.Namespace, method: str) -> dict[str, Any]:
  work = (options.model, method, str(options.rows), str(options.length))
  side = lambda name: pairs.Side("benchmarks.accelerator_side", name, *work)
  with side("ours") as ours, side("peer") as peer:
    measured = pairs.compare(ours, peer, options.pairs)
  _check(method, measured, MODELS[options.model]["vocab_size"])
  tokens, (parameters, trained) = options.rows * options.length, measured.ends[0]["parameters"]
  best = max(measured.matrix)
  low, ratio, high = measured.ratios()
  row: dict[str, Any] = {
    "work": f"{options.model}_{method}",
    "rows": options.rows,
    "length": options.length,
    "trained_parameters": trained,
    "peer_name": "PEFT (torch)",
    "unit": "tokens/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "matrix_gflops": [best / 1e9] * 2,
  }
  for index, name in enumerate(("ours", "peer")):
    speed = tokens / measured.median(index)
    row |= {
      name: speed,
      f"{name}_dtype": "bfloat16",
      f"{name}_peak_gb": measured.peak_bytes[index] / 1e9,
      f"{name}_use": 4 * parameters * speed / best,
      f"{name}_loss": measured.losses[index],
    }
  show(row)
  return row


def _check(method: str, measured: pairs.Comparison, vocab_size: int) -> None:
  """Both sides must have done the same work: as many parameters, losses as of random weights."""
  ours, peer = (end["parameters"] for end in measured.ends)
  if ours != peer:
    raise SystemExit(f"{method}: frozen and trained parameters differ, {ours} and {peer}")
  expected = math.log(vocab_size)
  if any(abs(loss - expected) > TOLERANCE * expected for loss in measured.losses):
    raise SystemExit(f"{method}: first losses of {measured.losses}, expected about {expected:.2f}")


if __name__ == "__main__":
  main()
