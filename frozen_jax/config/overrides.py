"""Single config keys as the command line gives them: text by dotted key, laid over a config.

A value takes the kind (whole number, number, true/false, text, list) that it has in the config, so
nothing is guessed. Imports no jax.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from frozen_jax.core.errors import UserError

# What a stage may have that the run as a whole has not.
STAGE_KEYS: Mapping[str, Any] = {"method": "", "init_from": (), "frozen_inputs": ()}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def override(config: ConfigDict, given: Iterable[tuple[str, str]]) -> None:
  """Replaces values in place: `("train.steps", "5")`, ... in order.

  A list is written `a,b` or as in Python; given several times, its parts are joined. A stage takes
  every key of the run (`stages.NAME.train.batch_size`), also one that its entry does not have yet.
  Raises UserError for an unknown key, and for a value of another kind than the one that stands.
  """
  lists: dict[str, tuple[Any, ...]] = {}
  for key, text in given:
    value = _converted(text, _standing(config, key), f"config.{key}")
    if isinstance(value, tuple):
      value = lists[key] = lists.get(key, ()) + value
    _put(config, key, value)


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
  if key not in known_keys(config) or key.partition(".")[0] in ("stages", "stage_order"):
    raise _unknown(config, full)
  return _standing(config, key)


def _unknown(config: ConfigDict, key: str) -> UserError:
  keys = known_keys(config)
  near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
  section = key.rpartition(".")[0]
  there = [name[len(section) + 1 :] for name in keys if section and name.startswith(f"{section}.")]
  if not there:
    section, there = "", list(dict.fromkeys(name.partition(".")[0] for name in keys))
  meant = f"; did you mean config.{near[0]}?" if near else ""
  where = f"config.{section}" if section else "config"
  return UserError(f"unknown config key config.{key}{meant}; {where} has {', '.join(there)}")


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
    wanted = _KINDS.get(kind, kind.__name__)
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
