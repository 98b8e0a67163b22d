"""A config as an evaluation uses it: what was trained keeps what it was trained with."""

import copy
from collections.abc import Mapping
from typing import Any

from frozen_jax.config.section import differences, identity, resolve, section_values
from frozen_jax.methods import METHODS
from frozen_jax.pipelines.experiment import StageSettings
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.run import workdir
from frozen_jax.run.settings import METHOD_SECTIONS, resolve_run

_INPUTS = ("template", "encoder_length")  # of the `data` section


def as_trained(config: Any, folder: Any) -> tuple[dict[str, Any], list[str]]:
  """The values of a config with those that the adapters of a workdir were trained with.

  These are each stage's method, the sections that it reads, how questions become its inputs, and
  the seeds. folder: a workdir, or an exported adapter, which is then the last stage's. Returns
  (values, the keys that the config has otherwise). Raises UserError where there is no adapter.
  """
  run = resolve_run(config)
  values = copy.deepcopy(dict(run.values))
  keys = _keep_seed(values, folder)
  for stage in run.stages:
    place = folder if stage is run.stages[-1] else folder / workdir.ADAPTERS / stage.name
    if place != folder and not place.is_dir():
      continue
    keys += _keep(stage, values["stages"][stage.name], read_stored(place)[1])
  return values, list(dict.fromkeys(keys))


def _keep_seed(values: dict[str, Any], folder: Any) -> list[str]:
  """Puts the seed of the workdir's run into the values; its key where it differs."""
  if not (folder / workdir.CONFIG).exists():
    return []
  given, seed = values["seed"], workdir.read_workdir_json(folder / workdir.CONFIG).get("seed")
  if seed in (None, given):
    return []
  values["seed"] = seed
  return ["seed"]


def _keep(stage: StageSettings, entry: dict[str, Any], info: Mapping[str, Any]) -> list[str]:
  """Puts into a stage's entry what its adapter says of itself; the keys that differ."""
  keys: list[str] = []
  method = METHODS.get(info.get("method", ""))
  if method is None or not isinstance(info.get("sections"), Mapping):
    return keys  # said where the adapter is loaded
  if method.name != stage.method:
    keys.append(f"stages.{stage.name}.method")
    for name in METHOD_SECTIONS:
      entry.pop(name, None)
    entry.get("train", {}).pop("learning_rate", None)
    entry["method"] = method.name
  for name, kind in method.sections.items():
    section: Any = resolve(kind, info["sections"].get(name, {}), name)
    own = stage.sections.get(name)
    differing = [] if own is None else differences(section, identity(own), name)
    if own is None or differing:
      entry[name] = section_values(section)
    keys += differing
  inputs: Any = info.get("inputs")
  for name in _INPUTS if isinstance(inputs, Mapping) else ():
    read = method.reads_encoder or name != "encoder_length"
    if read and name in inputs and inputs[name] != getattr(stage.data, name):
      entry["data"] = {**entry.get("data", {}), name: inputs[name]}
      keys.append(f"data.{name}")
  return keys
