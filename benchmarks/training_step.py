"""A prompt-tuning step of SmolLM2-135M against PEFT (torch): `python -m benchmarks.training_step`.

20 trained vectors before each row; forward, backward to the prompt, Adam. Works, of which the
first three are in float32 and the others with each side in its faster dtype:

  prompt_tuning_float32        4 rows of 236 tokens, all but the first of which are targets
  prompt_tuning_short_texts    32 rows of 24 tokens, the last 8 are targets
  prompt_tuning_padded_texts   32 rows of 12 to 32 tokens, the last 8 are targets
  prompt_tuning_best_dtype     as the first
  prompt_tuning_answers_only   as the first, but the last 8 tokens of a row are targets

Each side is a process of its own; they step in turn, and ratios are taken pair by pair. Tokens a
second are real text tokens; `use` is 4 FLOPs a parameter and text token (all weights frozen) as a
share of the faster side's matrix product in that dtype. Memory is the peak of the whole process.
`--json=FILE` also writes the rows. Needs `pip install -e '.[test]'`.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

from safetensors import safe_open

from benchmarks import pairs, work
from frozen_jax.core.user_path import user_path

DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of the first step's loss, relative
PAIRS = 7
WORKS = {  # by their names in `work.SHAPES`
  "prompt_tuning_float32": "all",
  "prompt_tuning_short_texts": "short",
  "prompt_tuning_padded_texts": "padded",
  "prompt_tuning_best_dtype": "all",
  "prompt_tuning_answers_only": "answers",
}
_IN_FLOAT32 = tuple(WORKS)[:3]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", type=user_path, help="also write the rows to this file")
  parser.add_argument("--pairs", type=int, default=PAIRS, help="measured steps of each side")
  parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="which ones")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "benchmarks.hf_copy", work.MODEL, folder], check=True)
    parameters = _parameters(pathlib.Path(folder))
    fastest = ("float32",) * 2
    if set(options.works) - set(_IN_FLOAT32):
      fastest = (_fastest("ours", folder), _fastest("peer", folder))
    dtypes = dict.fromkeys(WORKS, fastest) | dict.fromkeys(_IN_FLOAT32, ("float32",) * 2)
    rows = [
      _row(name, dtypes[name], WORKS[name], folder, parameters, options.pairs)
      for name in options.works
    ]
  if options.json:
    options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def machine() -> dict[str, Any]:
  """What the figures were measured on."""
  import jax
  import torch

  names = pathlib.Path("/proc/cpuinfo")
  lines = names.read_text().splitlines() if names.exists() else []
  model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
  return {
    "processor": model,
    "cores": len(os.sched_getaffinity(0)),
    "system": platform.platform(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "torch": torch.__version__,
  }


def _side(side: str, dtype: str, shape: str, folder: str) -> pairs.Side:
  if side == "ours":
    return pairs.Side("benchmarks.ours", dtype, shape)
  return pairs.Side("benchmarks.peer", dtype, shape, folder)


def _fastest(side: str, folder: str) -> str:
  """The dtype in which this side's step takes least time: the best of four each, in turn."""
  with contextlib.ExitStack() as stack:
    processes = {dtype: stack.enter_context(_side(side, dtype, "all", folder)) for dtype in DTYPES}
    seconds = {dtype: [] for dtype in DTYPES}
    for _ in range(5):
      for dtype, process in processes.items():
        seconds[dtype].append(process.ask("step")["seconds"])
  return min(DTYPES, key=lambda dtype: min(seconds[dtype][1:]))


def _row(
  name: str, dtypes: tuple[str, str], shape: str, folder: str, parameters: int, count: int
) -> dict[str, Any]:
  with (
    _side("ours", dtypes[0], shape, folder) as ours,
    _side("peer", dtypes[1], shape, folder) as peer,
  ):
    measured = pairs.compare(ours, peer, count)
  _check_losses(name, measured.losses, dtypes)
  tokens = int(work.make(1 << 10, 1, shape).lengths.sum())
  # A peak per dtype: the better of both sides where they share one.
  peaks = measured.matrix if dtypes[0] != dtypes[1] else (max(measured.matrix),) * 2
  use = [4 * parameters * tokens / measured.median(side) / peaks[side] for side in (0, 1)]
  low, ratio, high = measured.ratios()
  row = {
    "work": name,
    "ours": tokens / measured.median(0),
    "peer": tokens / measured.median(1),
    "peer_name": "PEFT (torch)",
    "unit": "real tokens/s",
    "ratio": ratio,
    "ratio_min": low,
    "ratio_max": high,
    "memory_ratio": measured.memory_ratio(),
    "ours_dtype": dtypes[0],
    "peer_dtype": dtypes[1],
    "ours_peak_gb": measured.peak_bytes[0] / 1e9,
    "peer_peak_gb": measured.peak_bytes[1] / 1e9,
    "ours_use": use[0],
    "peer_use": use[1],
    "matrix_gflops": [peak / 1e9 for peak in peaks],
    "ours_loss": measured.losses[0],
    "peer_loss": measured.losses[1],
  }
  show(row)
  return row


def _check_losses(name: str, losses: tuple[float, float], dtypes: tuple[str, str]) -> None:
  """Both sides must have done the same work: the losses of their first steps agree."""
  allowed = max(TOLERANCE[dtype] for dtype in dtypes)
  if abs(losses[0] - losses[1]) > allowed * abs(losses[1]):
    raise SystemExit(f"{name}: the first losses differ, {losses[0]:.5f} and {losses[1]:.5f}")


def show(row: dict[str, Any]) -> None:
  """A row as lines for the terminal."""
  print(
    f"{row['work']}: {row['ratio']:.2f} times {row['peer_name']} "
    f"(from {row['ratio_min']:.2f} to {row['ratio_max']:.2f} over the pairs), "
    f"{row['memory_ratio']:.2f} of its memory"
  )
  for side in ("ours", "peer"):
    print(
      f"  {side:5} {row[side + '_dtype']:9} {row[side]:8.0f} {row['unit']}  "
      f"use {row[side + '_use']:6.1%} (4N)  peak {row[side + '_peak_gb']:5.2f} GB  "
      f"loss {row[side + '_loss']:.5f}"
    )
  best = " and ".join(f"{rate:.0f}" for rate in row["matrix_gflops"])
  print(f"  matrix product: {best} GFLOP/s", flush=True)


def _parameters(folder: pathlib.Path) -> int:
  total = 0
  with safe_open(folder / "model.safetensors", "numpy") as stored:
    for name in stored.keys():  # noqa: SIM118 (not a dict)
      size = 1
      for axis in stored.get_slice(name).get_shape():
        size *= axis
      total += size
  return total


if __name__ == "__main__":
  main()
