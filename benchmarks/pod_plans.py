"""Large models on TPU pods, as `frozen_jax.tools.pod_plan` sees them: `python -m
benchmarks.pod_plans`.

Each of three methods with each of three models on each of three topologies: a plan each, and the
table of docs/results/pod_plans.md. What stands in the file of `--json` already is not planned
again, so that the command may be interrupted; `--methods`, `--models` and `--topologies` choose
some. Nine plans of one model take about half an hour on one core. Needs `pip install -e '.[plan]'`.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from frozen_jax.config.large_models import LARGE_MODELS
from frozen_jax.core.files import write_json
from frozen_jax.core.user_path import user_path
from frozen_jax.tools.pod_plan.__main__ import parse
from frozen_jax.tools.pod_plan.planning import plan_run

METHODS = ("prompt_tuning", "id_pt", "recursive")
TOPOLOGIES = ("v5p:4x4x8", "v5e:16x16", "v6e:16x16")
TITLES = {
  "train_step": (
    "config",
    "topology",
    "fits",
    "GB a chip",
    "products, s",
    "memory, s",
    "links, s",
    "bound by",
    "MFU",
  ),
  "decode_step": (
    "config",
    "topology",
    "fits",
    "GB a chip",
    "of that cache",
    "ms a token",
    "rows",
  ),
}
BOUNDS = {"compute": "products", "hbm": "memory", "ici": "links"}


def name_of(method: str, model: str) -> str:
  """The config of a method with a model."""
  return f"configs/{method}.py:{model}"


def plan(config: str, topology: str) -> dict[str, Any]:
  """The plan of a config on a topology, with one row a chip, without the list of buffers."""
  request, _ = parse([f"--config={config}", f"--topology={topology}", "--rows=1"])
  found = plan_run(request).record()
  for program in found["programs"]:
    del program["largest_buffers"]
  return found


def markdown(plans: Iterable[dict[str, Any]], name: str) -> str:
  """The table of one program of the plans."""
  header = TITLES[name]
  lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
  for one in plans:
    for program in one["programs"]:
      if program["name"] == name:
        lines.append("| " + " | ".join(_cells(one, program)) + " |")
  return "\n".join(lines)


def _cells(one: dict[str, Any], program: dict[str, Any]) -> list[str]:
  sizes, seconds = program["bytes_per_chip"], program["seconds"]
  total = sum(sizes.values()) / 1e9
  config = one["config"].removeprefix("configs/").replace(".py", "")
  cells = [f"`{config}`", one["topology"], "yes" if program["fits"] else "no", f"{total:.1f}"]
  compiled = any(seconds.values())
  if program["name"] == "decode_step":
    if not compiled:
      return [*cells, "-", "-", str(one["rows"])]
    cache = one["cache_bytes_per_chip"] / 1e9
    return [*cells, f"{cache:.2f}", f"{1e3 * max(seconds.values()):.1f}", str(one["rows"])]
  if not compiled:
    return [*cells, "-", "-", "-", "-", "-"]
  times = [f"{seconds[bound]:.2f}" for bound in BOUNDS]
  return [*cells, *times, BOUNDS[program["binds"]], f"{program['mfu']:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
  """Plans, prints the tables; the exit status: 1 where something does not fit."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.pod_plans", description=__doc__)
  parser.add_argument("--json", type=user_path, required=True, help="the file of the plans")
  for flag, known in (("methods", METHODS), ("models", LARGE_MODELS), ("topologies", TOPOLOGIES)):
    parser.add_argument(f"--{flag}", nargs="+", choices=known, default=known)
  options = parser.parse_args(arguments)
  jax.config.update("jax_platforms", "cpu")
  plans = _known(options.json)
  for topology, model, method in itertools.product(
    options.topologies, options.models, options.methods
  ):
    key = (name_of(method, model), topology)
    if key not in plans:
      print(*key, file=sys.stderr, flush=True)
      plans[key] = plan(*key)
      write_json(options.json, list(plans.values()))
  for name in TITLES:
    print(markdown(plans.values(), name), end="\n\n")
  return int(not all(program["fits"] for one in plans.values() for program in one["programs"]))


def _known(path: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
  if not path.exists():
    return {}
  return {(one["config"], one["topology"]): one for one in json.loads(path.read_text())}


if __name__ == "__main__":
  sys.exit(main())
