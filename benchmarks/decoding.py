"""Sampling from SmolLM2-135M against transformers' generate: `python -m benchmarks.decoding`.

64 prompts of 8 to 128 random tokens, 16 samples each, 32 tokens a sample at temperature 1. Neither
side knows an end token, so both draw all 32,768 tokens. Three works:

  decoding_float32         both sides in float32
  decoding_best_dtype      the same, each side in its faster dtype
  decoding_shared_prefill  ours with 16 samples of one reading of a prompt, against ours 16 times
                           with one sample; in our faster dtype

Each side writes as many continuations at once as is fastest for it (`--rows`, `--batches`), chosen,
like the dtypes, by short passes of a quarter of the prompts and 8 tokens a sample; the defaults are
for a CPU. Each side is a process of its own; they do a pass in turn, and ratios are taken pair by
pair. Memory is the peak of the whole process, on the host. Needs `pip install -e '.[test]'`; on a
GPU both sides compute there:

  XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.decoding --dtypes bfloat16 \\
    --rows 512 1024 --batches 256 1024

`--json=FILE` also writes the rows.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks import pairs
from benchmarks.training_step import DTYPES, machine
from benchmarks.work import MODEL
from frozen_jax.core.user_path import user_path

TRIED, SHARE = 8, 4  # tokens a sample of the passes that choose; one of so many prompts is read

How = tuple[str, int]  # dtype, and how many continuations are written at once
Sizes = tuple[int, int]  # prompts, and tokens of a sample


def main(arguments: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default=MODEL, help="a decoder of the Llama type")
  parser.add_argument("--prompts", type=int, default=64, help="how many prompts")
  parser.add_argument("--samples", type=int, default=16, help="samples of each")
  parser.add_argument("--new", type=int, default=32, help="tokens of a sample")
  parser.add_argument(
    "--rows", type=int, nargs="+", default=[64, 128], help="continuations at once: the best of"
  )
  parser.add_argument(
    "--batches", type=int, nargs="+", default=[64, 256], help="the same of the peer"
  )
  parser.add_argument("--dtypes", nargs="+", default=DTYPES, help="the dtypes that are tried")
  parser.add_argument("--pairs", type=int, default=3, help="measured passes of each side")
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  options = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as folder:
    copy = [sys.executable, "-m", "benchmarks.hf_copy", options.model, folder]
    subprocess.run(copy, check=True)
    rows = measure(options, folder)
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def measure(options: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
  """The three works; folder: the model as transformers reads it."""
  whole = options.prompts, options.new
  side = lambda name, how, sizes=whole: _side(name, how, sizes, options, folder)
  tried = -(-options.prompts // SHARE), TRIED
  ours = list(itertools.product(options.dtypes, options.rows))
  theirs = list(itertools.product(options.dtypes, options.batches))
  both = (("ours", ours), ("peer", theirs))
  took = {name: _seconds(side, name, hows, tried) for name, hows in both}

  def best(name: str, dtypes: Sequence[str]) -> How:
    return min((how for how in took[name] if how[0] in dtypes), key=took[name].__getitem__)

  ours_best, peer_best = (best(name, options.dtypes) for name in took)
  works = [
    ("decoding_best_dtype", ours_best, "peer", peer_best),
    ("decoding_shared_prefill", ours_best, "separate", ours_best),
  ]
  if "float32" in options.dtypes:
    ours_wide, peer_wide = (best(name, ["float32"]) for name in took)
    works.insert(0, ("decoding_float32", ours_wide, "peer", peer_wide))
  tokens = options.prompts * options.samples * options.new
  rows, known = [], {}
  for name, our_how, other, other_how in works:
    how = our_how, other, other_how
    if how not in known:  # float32 may be the best dtype of both
      with side("ours", our_how) as first, side(other, other_how) as second:
        known[how] = pairs.compare(first, second, options.pairs, warm=1)
    rows.append(row_of(name, known[how], tokens, other, (our_how, other_how)))
  return rows


def _side(
  name: str, how: How, sizes: Sizes, options: argparse.Namespace, folder: str
) -> pairs.Side:
  model, (prompts, new) = folder if name == "peer" else options.model, sizes
  numbers = (how[1], prompts, options.samples, new)
  return pairs.Side("benchmarks.decoding_side", name, model, how[0], *map(str, numbers))


def _seconds(side: Any, name: str, hows: list[How], sizes: Sizes) -> dict[How, float]:
  """How long a short pass takes in each way, in turn, after a first."""
  if len(hows) == 1:
    return {hows[0]: 0.0}
  with contextlib.ExitStack() as stack:
    processes = {how: stack.enter_context(side(name, how, sizes)) for how in hows}
    for _ in range(2):
      seconds = {how: process.ask("step")["seconds"] for how, process in processes.items()}
  return seconds


def row_of(
  name: str, measured: pairs.Comparison, tokens: int, other: str, hows: tuple[How, How]
) -> dict[str, Any]:
  """The row of the contract, which is also printed.

  Ends the program where a side has not drawn so many tokens.
  """
  if measured.losses != (tokens, tokens):
    raise SystemExit(f"{name}: {measured.losses} tokens were drawn, and not {tokens} by each side")
  low, ratio, high = measured.ratios()
  peer_name = "transformers generate" if other == "peer" else "a prefill for each sample"
  row = {
    "work": name,
    "ours": tokens / measured.median(0),
    "peer": tokens / measured.median(1),
    "peer_name": peer_name,
    "unit": "tokens/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "ours_dtype": hows[0][0],
    "peer_dtype": hows[1][0],
    "ours_batch_size": hows[0][1],
    "peer_batch_size": hows[1][1],
    "ours_peak_gb": measured.peak_bytes[0] / 1e9,
    "peer_peak_gb": measured.peak_bytes[1] / 1e9,
  }
  print(
    f"{name}: {ratio:.2f} times {peer_name} (from {low:.2f} to {high:.2f} over the pairs), "
    f"{row['memory_ratio']:.2f} of its memory"
  )
  for side in ("ours", "peer"):
    print(
      f"  {side:5} {row[side + '_dtype']:9} {row[side + '_batch_size']:5} at once "
      f"{row[side]:9.1f} tokens/s  peak {row[side + '_peak_gb']:5.2f} GB",
      flush=True,
    )
  return row


if __name__ == "__main__":
  main()
