"""Single config keys as the command line gives them: text by dotted key, laid over a config.

A value takes the kind (whole number, number, true/false, text, list) that it has in the config, so
nothing is guessed. Imports no jax.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from frozen_jax.config.section import KIND_NAMES
from frozen_jax.core.errors import UserError

# What a stage may have that the run as a whole has not.
_DURATIONS = {"steps": "epochs", "epochs": "steps"}  # of a section with both, one counts
STAGE_KEYS: Mapping[str, Any] = {"method": "", "init_from": (), "frozen_inputs": ()}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def override(config: ConfigDict, given: Iterable[tuple[str, str]]) -> None:
  """Replaces values in place: `("train.steps", "5")`, ... in order.

  A list is written `a,b` or as in Python; given several times, its parts are joined. A stage takes
  every key of the run (`stages.NAME.train.batch_size`), also one that its entry does not have yet.
  Raises UserError for an unknown key, and for a value of another kind than the one that stands.
  """
  values: dict[str, Any] = {}
  for key, text in given:
    value = _converted(text, _standing(config, key), f"config.{key}")
    if isinstance(value, tuple):
      value = values.get(key, ()) + value
    values[key] = value
    _put(config, key, value)
  _replace_durations(config, values)
  _replace_seeds(config, values)


def _replace_seeds(config: ConfigDict, given: Mapping[str, Any]) -> None:
  """Where one seed is given, it replaces several; UserError for both."""
  if "seed" in given and given.get("seeds"):
    raise UserError("config.seed and config.seeds are both given; give one of them")
  if "seed" in given and "seeds" in config:
    _put(config, "seeds", ())


def _replace_durations(config: ConfigDict, given: Mapping[str, Any]) -> None:
  """Where steps or epochs are given, the other of the two becomes 0; UserError for both."""
  for key, value in given.items():
    other = _other_duration(key)
    if not other or not _is_known(config, other):
      continue
    if not value and (other in given or key.endswith("epochs")):
      continue
    if given.get(other):
      raise UserError(
        f"config.{key} and config.{other} are both given, and each says how long to train; give"
        " one of them"
      )
    _put(config, other, type(_standing(config, other))(0))


def _other_duration(key: str) -> str:
  """`....steps` -> `....epochs`, and the other way round; "" for another key."""
  section, _, name = key.rpartition(".")
  return f"{section}.{_DURATIONS[name]}" if name in _DURATIONS else ""


def _is_known(config: ConfigDict, key: str) -> bool:
  try:
    _standing(config, key)
  except UserError:
    return False
  return True


def known_keys(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Every dotted key of a config that holds a value, with that value."""
  keys: dict[str, Any] = {}
  for name, value in config.items():
    inner = isinstance(value, ConfigDict)
    keys |= known_keys(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
  return keys


def _standing(config: ConfigDict, key: str) -> Any:
  """What the key holds now, or for a stage would have from the run as a whole."""
  value: Any = config
  names = key.split(".")
  for index, name in enumerate(names):
    if isinstance(value, ConfigDict) and name in value:
      value = value[name]
    elif names[0] == "stages" and index >= 2:
      return _of_stage(config, ".".join(names[2:]), key)
    else:
      raise _unknown(config, key)
  if isinstance(value, ConfigDict):
    example = next(iter(known_keys(value, f"{key}.")), f"{key}.KEY")
    raise UserError(f"config.{key} is a section; give a key of it, such as --config.{example}=...")
  return value


def _of_stage(config: ConfigDict, key: str, full: str) -> Any:
  if key in STAGE_KEYS:
    return STAGE_KEYS[key]
  if key not in _of_run(config):
    raise _unknown(config, full)
  return _standing(config, key)


def _of_run(config: ConfigDict) -> dict[str, Any]:
  """The keys of the run as a whole that a stage may have for itself."""
  return {
    key: value
    for key, value in known_keys(config).items()
    if key.partition(".")[0] not in ("stages", "stage_order")
  }


def _unknown(config: ConfigDict, key: str) -> UserError:
  near = nearest_key(config, key)
  meant = f"; did you mean config.{near}?" if near else ""
  names = key.split(".")
  if names[0] == "stages" and len(names) > 1 and names[1] not in config.stages:
    section, there = "stages", list(config.stages)
  else:
    section, there = _section_of(config, key)
  where = f"config.{section}" if section else "config"
  return UserError(f"unknown config key config.{key}{meant}; {where} has {', '.join(there)}")


def _section_of(config: ConfigDict, key: str) -> tuple[str, list[str]]:
  """The innermost section around a key, "" for the whole config, and the keys in it."""
  keys = all_keys(config)
  section = key.rpartition(".")[0]
  there = [name[len(section) + 1 :] for name in keys if section and name.startswith(f"{section}.")]
  if there:
    return section, there
  return "", list(dict.fromkeys(name.partition(".")[0] for name in keys))


def all_keys(config: ConfigDict) -> list[str]:
  """Every dotted key that can be given, also those that a stage has from the run as a whole."""
  of_stage = [*STAGE_KEYS, *_of_run(config)]
  return [
    *(key for key in known_keys(config) if not key.startswith("stages.")),
    *(f"stages.{stage}.{key}" for stage in config.stages for key in of_stage),
  ]


def nearest_key(config: ConfigDict, key: str) -> str:
  """The key that a misspelt or misplaced one most likely means; "" where none is near.

  First comes one of the same section (of a stage: of the same stage), then one of the same name in
  another section (of a key without a section that comes first), then one that is spelt alike as a
  whole.
  """
  keys = all_keys(config)
  names = key.split(".")
  if names[0] == "stages" and len(names) > 2:
    known = names[1] in config.stages
    stage = names[1] if known else _closest(names[1], list(config.stages))
    prefix, rest = f"stages.{stage}.", ".".join(names[2:])
    near = _nearest([one.removeprefix(prefix) for one in keys if one.startswith(prefix)], rest)
    return near and prefix + near
  return _nearest(keys, key)


def _nearest(keys: list[str], key: str) -> str:
  if key in keys:
    return key
  section, _, name = key.rpartition(".")
  siblings = {one.rpartition(".")[2]: one for one in keys if one.rpartition(".")[0] == section}
  same_name = [one for one in keys if one.rpartition(".")[2] == name]
  if (section or not same_name) and (near := _closest(name, list(siblings))):
    return siblings[near]
  if same_name:
    alike = lambda one: difflib.SequenceMatcher(None, key, one).ratio()
    return max(same_name, key=alike)
  return _closest(key, keys)


def _closest(name: str, names: Iterable[str]) -> str:
  return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)), "")


def own_values_of_stages(
  config: ConfigDict, given: Iterable[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
  """{stage: {key: value}}: where a stage that runs keeps a value of its own for a given key."""
  given = dict(given)
  found: dict[str, dict[str, Any]] = {}
  for stage in config.stage_order:
    own = known_keys(config.stages[stage]) if stage in config.stages else {}
    for key in given:
      alike = ["seed"] if key == "seeds" else [one for one in (key, _other_duration(key)) if one]
      if any(f"stages.{stage}.{one}" in given for one in alike):
        continue
      for one in alike:
        other = key == "seeds" or own.get(one) != known_keys(config).get(one)
        if one in own and other and (own[one] or len(alike) == 1):
          found.setdefault(stage, {})[one] = own[one]
  return found


def _converted(text: str, old: Any, where: str) -> Any:
  if isinstance(old, tuple | list):
    part = old[0] if old else ""
    return tuple(_converted(str(one), part, f"a part of {where}") for one in _parts(text))
  if isinstance(old, str):
    return text
  kind = type(old)
  try:
    return _TRUTH[text.strip().lower()] if kind is bool else kind(text)
  except (KeyError, ValueError, TypeError):
    wanted = KIND_NAMES.get(kind, kind.__name__)
    raise UserError(f"{where} is {text!r}, but it takes {wanted}; such as {old!r}") from None


def _parts(text: str) -> tuple[Any, ...]:
  """`a,b`, `('a', 'b')` or `[1, 2]`; nothing, or `()`, is the empty list."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    bare = text.strip().strip("()[]")
    return tuple(part.strip().strip("'\"") for part in bare.split(",") if part.strip())
  return tuple(value) if isinstance(value, tuple | list) else (value,)


def _put(config: ConfigDict, key: str, value: Any) -> None:
  *sections, last = key.split(".")
  node = config
  with config.unlocked():
    for name in sections:
      if name not in node:
        node[name] = ConfigDict()
      node = node[name]
    node[last] = value
