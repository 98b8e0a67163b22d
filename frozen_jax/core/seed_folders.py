"""Several seeds of a config in one workdir: each has its own, WORKDIR/seed_N."""

import re
from collections.abc import Sequence

from frozen_jax.core.object_store import AnyPath

_NAME = re.compile(r"seed_(0|-?[1-9]\d*)")


def seed_folder(workdir: AnyPath, seed: int) -> AnyPath:
  """The workdir of a seed."""
  return workdir / f"seed_{seed}"


def seeds_in(workdir: AnyPath) -> list[int]:
  """The seeds that have a folder in a workdir, rising; [] where there is none."""
  found = [_NAME.fullmatch(path.name) for path in workdir.iterdir()] if workdir.is_dir() else []
  return sorted(int(one[1]) for one in found if one)


def workdir_name(workdir: AnyPath) -> str:
  """The last part of a workdir's path; of that of a seed the last two."""
  is_of_seed = _NAME.fullmatch(workdir.name)
  return f"{workdir.parent.name}/{workdir.name}" if is_of_seed else workdir.name


def several_runs(workdir: AnyPath, seeds: Sequence[int]) -> str:
  """What is said of a workdir that holds the runs of seeds, where one run is wanted."""
  listed = ", ".join(map(str, seeds))
  return (
    f"{workdir} holds the runs of the seeds {listed}; name one of them, such as"
    f" {seed_folder(workdir, seeds[0])}"
  )
