"""`seeds=0,1,2`: a config with several seeds, and the tables of its runs joined.

The run of a seed is one like any other, in WORKDIR/seed_N (`core.seed_folders`).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import write_bytes, write_json
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.seed_folders import seed_folder, seeds_in, several_runs
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.run.results.comparison import compare_runs
from frozen_jax.run.results.comparison_formats import json_value, markdown_text, terminal_text
from frozen_jax.run.results.records import Record
from frozen_jax.run.results.report import say
from frozen_jax.run.workdir import CONFIG
from frozen_jax.sharding.hosts import is_first_host

TABLE = "seeds"  # the files seeds.md and seeds.json

_LOG = logging.getLogger(__name__)


def of_seed(run: RunSettings, seed: int) -> dict[str, Any]:
  """The config of a run's seed alone."""
  return {**run.values, "seed": seed, "seeds": []}


def train_seeds(
  run: RunSettings, workdir: AnyPath, train: Callable[[dict[str, Any], AnyPath], Record]
) -> Record:
  """Runs each seed in turn, as `train` does one config in one workdir, and joins their tables.

  Those that are complete are not run again. Returns what seeds.json holds. Raises UserError for a
  workdir with a run of its own, and as `train`.
  """
  if (workdir / CONFIG).exists():
    raise UserError(f"{workdir} holds a single run; choose another --workdir for several seeds")
  for number, seed in enumerate(run.seeds, start=1):
    _LOG.info("seed %d, %d of %d", seed, number, len(run.seeds))
    record = train(of_seed(run, seed), seed_folder(workdir, seed))
  if run.stop_after:
    return record
  return join([seed_folder(workdir, seed) for seed in run.seeds], workdir)


def check_single(workdir: AnyPath) -> None:
  """UserError for a workdir that holds runs of several seeds, and none of its own."""
  if not (workdir / CONFIG).exists() and (seeds := seeds_in(workdir)):
    raise UserError(
      f"{several_runs(workdir, seeds)}, or give --config.seeds={','.join(map(str, seeds))}"
    )


def join(folders: Sequence[AnyPath], place: AnyPath) -> Record:
  """Compares the records in `folders`, prints that and writes it to seeds.md and seeds.json.

  Returns what the latter holds.
  """
  comparison = compare_runs(folders)
  value = json_value(comparison)
  if is_first_host():
    write_bytes(place / f"{TABLE}.md", (markdown_text(comparison) + "\n").encode())
    write_json(place / f"{TABLE}.json", value)
  say("", terminal_text(comparison), "", f"The table is in {place / TABLE}.md and {TABLE}.json.")
  return value
