"""From a config to typed settings: each section is resolved once, here.

A config is nested plain values. `with_defaults` adds the defaults of every section that a method or
a pipeline may read; `resolve` makes dataclasses of the sections (`config.section`), one set for the
run and one for each stage.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from frozen_jax.config.allowed import check_allowed
from frozen_jax.config.links import parse_links
from frozen_jax.config.overrides import STAGE_KEYS
from frozen_jax.config.section import (
  allowed,
  as_json,
  help_line,
  help_lines,
  help_of,
  resolve,
  section_values,
  unknown_key,
)
from frozen_jax.core.compiler import most_optimizations_disabled
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.evaluation.gains import stated_gains
from frozen_jax.methods import METHODS
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.run.defaults import RUN_KEYS, SECTIONS, several_seeds
from frozen_jax.training.settings import check_schedule

T = TypeVar("T")
Verb = Callable[[Any, str | AnyPath], T]

# Sections that are the run's, and of others what a stage can have of its own.
_OF_THE_RUN = ("mesh", "cascade")
_STAGE_FIELDS = {"model": ("remat",)}
# Keys of the run as a whole that `RunSettings` has.
_RUN_FIELDS = (
  "seed",
  "init_from",
  "baseline",
  "stop_after",
  "disable_most_optimizations",
  "tensorboard",
)

# Sections by name: the run's, those of the methods, those of the pipelines.
METHOD_SECTIONS = {
  name: kind
  for method in METHODS.values()
  for name, kind in method.sections.items()
  if name not in SECTIONS
}
_ALL_SECTIONS: dict[str, Any] = {
  **SECTIONS,
  **METHOD_SECTIONS,
  **{name: pipeline.settings for name, pipeline in PIPELINES.items()},
}
_PLAIN_SECTIONS = ("predict", "export", "stages")


def default_learning_rates() -> dict[str, float]:
  """The default peak rate of every part that some method trains."""
  return {part: rate for method in METHODS.values() for part, rate in method.learning_rates.items()}


def with_defaults(config: ConfigDict) -> ConfigDict:
  """A copy of a config with the defaults of all that a method or a pipeline in it may read.

  Raises UserError where a plain value stands for a section.
  """
  whole = ConfigDict(_plain_values(config))
  for name in (*_ALL_SECTIONS, *_PLAIN_SECTIONS):
    if name in whole and not isinstance(whole[name], ConfigDict):
      raise UserError(f"config.{name} is {whole[name]!r}; it is a section, with keys of its own")
  given = _with_one_duration(_plain_values(whole))
  for name, kind in {**SECTIONS, **METHOD_SECTIONS}.items():
    whole[name] = ConfigDict(_merge(section_values(kind()), given.get(name, {})))
  for name, pipeline in PIPELINES.items():
    if name in whole:
      whole[name] = ConfigDict(_merge(section_values(pipeline.settings()), given[name]))
  for key, field in RUN_KEYS.items():
    section, _, name = key.rpartition(".")
    if section and section not in whole:
      whole[section] = ConfigDict()
    target = whole[section] if section else whole
    if name not in target:
      target[name] = field.default
  rates = default_learning_rates() | dict(_values(whole["train"], "learning_rate"))
  whole.train.learning_rate = ConfigDict(rates)
  if "stages" not in whole:
    whole.stages = ConfigDict()
  return whole.lock()


def resolve_run(config: Any) -> RunSettings:
  """A ConfigDict or dict -> typed settings, checked.

  Raises UserError for unknown keys, values that cannot be, an order that names no stage, an unknown
  method.
  """
  values = _plain_values(
    with_defaults(config if isinstance(config, ConfigDict) else ConfigDict(config))
  )
  _check_keys(values)
  seeds = several_seeds(values["seeds"])
  values["seeds"] = list(seeds)
  every = {name: _stage(values, name) for name in (*values["stage_order"], *values["stages"])}
  stages = tuple(every[name] for name in values["stage_order"])
  steps = [step for name, one in PIPELINES.items() if name in values for step in one.steps]
  if values["stop_after"] and values["stop_after"] not in steps:
    listed = ", ".join(steps) or "nothing else: no pipeline runs before the stages"
    raise UserError(f"stop_after is {values['stop_after']!r}; it is empty or one of {listed}")
  values = _used(values, [stage.method for stage in stages])
  run: dict[str, Any] = {name: resolve(kind, values[name], name) for name, kind in SECTIONS.items()}
  return RunSettings(
    values=values,
    stages=stages,
    pipelines=_pipelines(values),
    seeds=seeds,
    gains=stated_gains(values["gains"], values["stages"]),
    **{key: values[key] for key in _RUN_FIELDS},
    **run,
  )


def help_text(config: ConfigDict) -> str:
  """A line for each key of a completed config that its stages read, with its value and help.

  Raises UserError as `resolve_run`.
  """
  resolve_run(config)
  values = _plain_values(config)
  values = _used(values, [entry.get("method") for entry in values["stages"].values()])
  used = _sections_in_use(values)
  lines = [help_line(key, _at(values, key), help_of(field)) for key, field in RUN_KEYS.items()]
  for name in used:
    kind = _ALL_SECTIONS[name]
    lines += ["", f"  {name}: {(kind.__doc__ or '').strip().splitlines()[0]}"]
    lines += help_lines(resolve(kind, values[name], name), name)
  for name, entry in values["stages"].items():
    lines += ["", f"  stages.{name}: its own values"]
    lines += [help_line(f"stages.{name}.{key}", value, "") for key, value in _dotted(entry)]
  return "\n".join(lines)


def _check_keys(values: Mapping[str, Any]) -> None:
  """UserError for a key that there is not, and for a value of another kind, read or not."""
  known = {*_ALL_SECTIONS, *_PLAIN_SECTIONS, *(key for key in RUN_KEYS if "." not in key)}
  for key in values:
    if key not in known:
      raise UserError(unknown_key(key, sorted(known), ""))
    if key in _ALL_SECTIONS:
      resolve(_ALL_SECTIONS[key], values[key], key)
  for section in ("predict", "export"):
    names = [key.partition(".")[2] for key in RUN_KEYS if key.startswith(f"{section}.")]
    for name in values[section]:
      if name not in names:
        raise UserError(unknown_key(f"{section}.{name}", names, section))
  for key, field in RUN_KEYS.items():
    value, default = _at(values, key), field.default
    if type(value) is not type(_plain_values(default)):
      raise UserError(f"config.{key} is {value!r}, but it takes a value such as {default!r}")
    check_allowed(allowed(field), value, key)
  _check_rates(values["train"], "train")


def _with_one_duration(values: Mapping[str, Any]) -> dict[str, Any]:
  """Values that are to be laid over others, in which steps replace epochs and epochs steps."""
  changed = dict(values)
  for path in _durations():
    node: Any = changed
    for name in path:
      node = node.get(name, {}) if isinstance(node, Mapping) else {}
    names = set(node) if isinstance(node, Mapping) else set()
    zero: dict[str, Any] = {}
    if names >= {"steps"} and "epochs" not in names:
      zero = {"epochs": 0.0}
    elif names >= {"epochs"} and "steps" not in names and node["epochs"]:
      zero = {"steps": 0}
    if zero:
      for name in reversed(path):
        zero = {name: zero}
      changed = _merge(changed, zero)
  return changed


def _durations() -> list[tuple[str, ...]]:
  """The paths of all sections that have steps and epochs."""

  def within(section: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    if {"steps", "epochs"} <= values.keys():
      yield path
    for name, value in values.items():
      if dataclasses.is_dataclass(value):
        yield from within(value, (*path, name))

  return [path for name, kind in _ALL_SECTIONS.items() for path in within(kind(), (name,))]


def _check_rates(train: Mapping[str, Any], name: str) -> None:
  """UserError for the learning rate of a part that no method trains."""
  known = default_learning_rates()
  for part in train.get("learning_rate", {}):
    if part not in known:
      key = f"{name}.learning_rate"
      raise UserError(unknown_key(f"{key}.{part}", sorted(known), key))


def _stage(values: Mapping[str, Any], name: str) -> StageSettings:
  """The settings of one stage: the run's values with its entry laid over them."""
  if name not in values["stages"]:
    raise UserError(
      f"config.stage_order names stage {name!r}; config.stages has {', '.join(values['stages'])}"
    )
  if not isinstance(values["stages"][name], Mapping):
    raise UserError(f"config.stages.{name} is no section; give it a method, and keys of its own")
  entry = _with_one_duration(values["stages"][name])
  method = entry.pop("method", None)
  if method not in METHODS:
    raise UserError(f"stage {name} has method {method!r}; there are: {', '.join(METHODS)}")
  links = {}
  for key in ("init_from", "frozen_inputs"):
    linked = METHODS[method].learning_rates if key == "init_from" else METHODS[method].frozen_inputs
    key_path = f"config.stages.{name}.{key}"
    links[key] = parse_links(entry.pop(key, ()), linked, values["stages"], key_path)
  _check_entry(values, name, method, entry)
  merged = _merge({key: values[key] for key in values if key != "stages"}, entry)
  where = lambda key: f"stages.{name}.{key}" if key in entry else key
  own: dict[str, Any] = {
    key: resolve(kind, merged[key], where(key)) for key, kind in SECTIONS.items()
  }
  _check_rates(merged["train"], f"stages.{name}.train")
  if own["train"].steps:
    check_schedule(own["train"], where("train"))
  rates = {part: own["train"].learning_rate[part] for part in METHODS[method].learning_rates}
  sections = {
    key: own[key] if key in own else resolve(kind, merged[key], where(key))
    for key, kind in METHODS[method].sections.items()
  }
  read = METHODS[method].inputs_read(sections)
  links["frozen_inputs"] = {
    key: link for key, link in links["frozen_inputs"].items() if key in read
  }
  return StageSettings(
    name,
    method,
    merged["seed"],
    own["model"],
    own["data"],
    own["prompt"],
    dataclasses.replace(own["train"], learning_rate=rates),
    own["evaluate"],
    sections,
    _pipelines(merged, where),
    **links,
  )


def _check_entry(
  values: Mapping[str, Any], name: str, method: str, entry: Mapping[str, Any]
) -> None:
  """UserError for a key of a stage's entry that no stage has, or that this one's method ignores."""
  for key, own in entry.items():
    if key in _OF_THE_RUN:
      raise UserError(f"config.stages.{name}.{key} cannot be: {key} is the same for all stages")
    if key in values and key not in (*_ALL_SECTIONS, "seed"):
      raise UserError(
        f"unknown config key config.stages.{name}.{key}; did you mean config.{key}, of the run as a"
        " whole?"
      )
    if key not in _ALL_SECTIONS and key != "seed":
      known = [*_ALL_SECTIONS, "seed", *STAGE_KEYS]
      raise UserError(unknown_key(f"stages.{name}.{key}", known, f"stages.{name}"))
    if key in METHOD_SECTIONS and key not in METHODS[method].sections:
      given = _dotted(own, f"{key}.")[0][0] if isinstance(own, Mapping) and own else key
      reads = [one for one in METHODS if key in METHODS[one].sections]
      raise _of_another_stage(values, name, given, reads)
    _check_fields(f"stages.{name}.{key}", key, own)
  train = entry.get("train", {})
  for part in train.get("learning_rate", {}) if isinstance(train, Mapping) else ():
    if part in default_learning_rates() and part not in METHODS[method].learning_rates:
      trains = [one for one in METHODS if part in METHODS[one].learning_rates]
      raise _of_another_stage(values, name, f"train.learning_rate.{part}", trains)


def _of_another_stage(
  values: Mapping[str, Any], name: str, key: str, methods: Sequence[str]
) -> UserError:
  """A key that a stage's method does not read, with a stage of one of the methods that do."""
  entries = {
    stage: entry.get("method")
    for stage, entry in values["stages"].items()
    if isinstance(entry, Mapping)
  }
  others = [stage for stage, method in entries.items() if method in methods]
  there = f"did you mean config.stages.{others[-1]}.{key}?" if others else "no stage here does"
  return UserError(
    f"config.stages.{name}.{key} is not read by the stage's method, {entries[name]}; {there}"
  )


def _check_fields(path: str, key: str, own: Any) -> None:
  """UserError for a field of a stage's section that is the same for all stages."""
  fields = PIPELINES[key].stage_fields if key in PIPELINES else _STAGE_FIELDS.get(key)
  if fields is None or not isinstance(own, Mapping):
    return
  for field in own:
    if field not in fields:
      listed = f"; of its own it can have {', '.join(fields)}" if fields else ""
      raise UserError(f"config.{path}.{field} cannot be: it is the same for all stages{listed}")


def _pipelines(values: Mapping[str, Any], where: Callable[[str], str] = str) -> dict[str, Any]:
  """The sections of the pipelines that are asked for; where: a section's name for messages."""
  return {
    name: resolve(pipeline.settings, values[name], where(name))
    for name, pipeline in PIPELINES.items()
    if name in values
  }


def _sections_in_use(values: Mapping[str, Any]) -> list[str]:
  """The sections that something in the config reads, in a fixed order."""
  methods = {entry.get("method") for entry in values["stages"].values()}
  read = {name for key in methods if key in METHODS for name in METHODS[key].sections}
  return [
    name
    for name in _ALL_SECTIONS
    if name in values and (name in SECTIONS or name in PIPELINES or name in read)
  ]


def _used(values: Mapping[str, Any], methods: Iterable[str]) -> dict[str, Any]:
  """The values without the sections and rates that none of these methods reads."""
  used = {*_sections_in_use(values), *_PLAIN_SECTIONS}
  own = {key: value for key, value in values.items() if key not in _ALL_SECTIONS or key in used}
  parts = {part for name in methods if name in METHODS for part in METHODS[name].learning_rates}
  rates = values["train"]["learning_rate"]
  chosen = {part: rate for part, rate in rates.items() if part in parts}
  return own | {"train": values["train"] | {"learning_rate": chosen}}


def _plain_values(config: Any) -> dict[str, Any]:
  """Nested dicts of plain values, lists for tuples, as config.json has them."""
  return as_json(config.to_dict() if hasattr(config, "to_dict") else config)


def _values(config: ConfigDict, name: str) -> dict[str, Any]:
  return _plain_values(config[name]) if name in config else {}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts with the values of `over` in place of those of `base`."""
  merged = copy.deepcopy(dict(base))
  for key, value in over.items():
    both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
    merged[key] = _merge(merged[key], value) if both else value
  return merged


def _at(values: Mapping[str, Any], key: str) -> Any:
  section, _, name = key.rpartition(".")
  return values[section][name] if section else values[name]


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  pairs: list[tuple[str, Any]] = []
  for key, value in tree.items():
    nested = isinstance(value, Mapping)
    pairs += _dotted(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
  return pairs


def compiled_as_asked(verb: Verb[T]) -> Verb[T]:
  """The verb within `most_optimizations_disabled`, where its config's key of that name is set."""

  @functools.wraps(verb)
  def run(config: Any, folder: str | AnyPath) -> T:
    with most_optimizations_disabled(resolve_run(config).disable_most_optimizations):
      return verb(config, folder)

  return run
