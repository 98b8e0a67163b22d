"""From a config to plain, checked options: one dict for the run and one for each of its stages."""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.methods import METHODS
from frozen_jax.run.overrides import STAGE_KEYS

Options = dict[str, Any]


def resolve(config: Any) -> Options:
  """A ConfigDict or dict -> nested dicts of plain values, checked.

  Raises UserError for an order that names no stage, an unknown method, or sizes below 1.
  """
  options = _plain(config)
  if not options.get("order"):
    raise UserError("config.order is empty; name at least one stage of config.stages")
  for name in options["order"]:
    stage = stage_options(options, name)
    if stage.get("method") not in METHODS:
      raise UserError(
        f"stage {name} has method {stage.get('method')!r}; there are: {', '.join(METHODS)}"
      )
    for key in ("batch_size", "accumulate", "log_every", "validate_every", "checkpoint_every"):
      _at_least(stage["train"][key], 1, f"train.{key} of stage {name}")
    _at_least(stage["train"]["steps"], 0, f"train.steps of stage {name}")
    if stage["train"]["batch_size"] % stage["train"]["accumulate"]:
      raise UserError(
        f"train.batch_size {stage['train']['batch_size']} of stage {name} is not divisible by"
        f" train.accumulate {stage['train']['accumulate']}; choose a multiple"
      )
  for key in ("max_examples", "max_new_tokens", "num_beams", "batch_size"):
    _at_least(options["evaluate"][key], 1, f"evaluate.{key}")
  return options


def stage_options(options: Options, name: str) -> Options:
  """The run's options with the entry `stages.NAME` laid over them.

  `made_data` (no key of a config): digests of those splits that the run made itself, else empty.
  """
  if name not in options["stages"]:
    raise UserError(
      f"config.order names stage {name!r}; config.stages has {', '.join(options['stages'])}"
    )
  base = {key: value for key, value in options.items() if key not in ("stages", "order")}
  base["made_data"] = dict.fromkeys(("train", "validation", "test"), "")
  return _overlay(copy.deepcopy(base), options["stages"][name], f"stages.{name}")


def differences(stored: Options, now: Options, ignored: tuple[str, ...]) -> list[str]:
  """The dotted keys in which two resolved configs differ, but for those of `ignored` sections."""
  before, after = dict(_dotted(stored)), dict(_dotted(now))
  return [
    key
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key) and key.partition(".")[0] not in ignored
  ]


def pairs(entries: tuple[str, ...]) -> dict[str, str]:
  """("a=b/c", ...) -> {"a": "b/c"}; UserError where an entry has no `=`."""
  for entry in entries:
    if "=" not in entry:
      raise UserError(f"{entry!r} is not of the form name=value")
  return dict(entry.split("=", 1) for entry in entries)


def _plain(config: Any) -> Options:
  as_dict = config.to_dict() if hasattr(config, "to_dict") else config
  return json.loads(json.dumps(as_dict))  # tuples become lists, as in config.json


def _overlay(base: Options, over: Mapping[str, Any], where: str) -> Options:
  for key, value in over.items():
    if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
      base[key] = _overlay(dict(base[key]), value, f"{where}.{key}")
    elif key in base or key in STAGE_KEYS:
      base[key] = value
    else:
      raise UserError(f"unknown config key {where}.{key}; there are: {', '.join(base)}")
  return base


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _dotted(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _at_least(value: int, least: int, name: str) -> None:
  if value < least:
    raise UserError(f"{name} is {value}; it must be at least {least}")
