"""What the record of a run depends on besides its settings: contents of data, models, adapters.

They have digests, under the keys of the config that name them, and results.json holds these, so
that a complete run is compared with what the same names hold by now.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.data.sources import open_source
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.identity import encoder_identity, identified_model, lm_identity
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.sharding.checksum import checksum

Digests = dict[str, str]

_SPLITS = ("train", "validation")


def data_digests(run: RunSettings) -> dict[str, Digests]:
  """{stage: {split: digest}} of the training and validation data that can be read by now."""
  digests: dict[str, Digests] = {}
  for stage in run.stages:
    digests[stage.name] = {}
    for split in _SPLITS:
      with contextlib.suppress(UserError):
        digests[stage.name][split] = _data_digest(*_named(stage, split))
  return digests


def input_digests(run: RunSettings, lm: FrozenLM) -> Digests:
  """{config key: digest} of all else that can be read by now: models, adapters, test data.

  lm: the run's, loaded.
  """
  return _digests({**_trained_from(run, lm), **_scored_on(run)})


def other_data(
  run: RunSettings, stored: RunSettings, digests: Mapping[str, Mapping[str, str]]
) -> list[str]:
  """The keys of training and validation data whose contents are not those of the digests.

  stored: the run that these are of. Files that are gone by now count as unchanged under the same
  name, and are an error under another.
  """
  keys: list[str] = []
  for stage, before in zip(run.stages, stored.stages, strict=True):
    for split, digest in digests.get(stage.name, {}).items():
      now = _named(stage, split)
      try:
        same = _data_digest(*now) == digest
      except UserError:
        if now != _named(before, split):
          raise
        continue
      if not same:
        keys.append(f"data.{split}")
  return list(dict.fromkeys(keys))


def other_inputs(run: RunSettings, stored: RunSettings, digests: Mapping[str, str]) -> list[str]:
  """The keys of models and adapters that are not those of the digests; as `other_data`."""
  keys = []
  for key, read in _trained_from(run, None).items():
    try:
      same = key not in digests or digests[key] == read()
    except UserError:
      if _at(run.values, key) != _at(stored.values, key):
        raise
      continue
    if not same:
      keys.append(key)
  return keys


def other_test_data(run: RunSettings, digests: Mapping[str, str]) -> list[str]:
  """The keys of data that are scored whose contents are not those of the digests, as far as they
  can be read.
  """
  found = _digests(_scored_on(run))
  return [key for key, digest in found.items() if digests.get(key, digest) != digest]


def _trained_from(run: RunSettings, lm: FrozenLM | None) -> dict[str, Callable[[], str]]:
  """What reads the digest of each model and adapter, and of what the pipelines read.

  lm: None if it is not loaded.
  """
  templates = tuple(dict.fromkeys(stage.data.template for stage in run.stages))
  encoder = None if lm is None else lm.encoder
  found: dict[str, Callable[[], str]] = {
    "model.name": lambda: lm_identity(lm or identified_model(run.model), templates)
  }
  if run.model.encoder and any(stage.reads_encoder for stage in run.stages):
    found["model.encoder"] = lambda: (
      encoder.texts_fingerprint if encoder else encoder_identity(run.model.encoder)
    )
  if run.init_from:
    found["init_from"] = lambda: str(checksum(read_stored(run.init_from)[0]))
  for name, pipeline in PIPELINES.items():
    if name in run.pipelines:
      found |= pipeline.dependencies(run)
  return found


def _scored_on(run: RunSettings) -> dict[str, Callable[[], str]]:
  data = run.data

  def read(*specs: str) -> str:
    digests = [_data_digest(one, data.fields, data.templates) for one in specs]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

  found = {"data.test": lambda: read(data.test)}
  if data.held_out:
    found["data.held_out"] = lambda: read(*data.held_out)
  return found


def _digests(readers: Mapping[str, Callable[[], str]]) -> Digests:
  """What the readers find; what cannot be read by now has none."""
  found = {}
  for key, read in readers.items():
    with contextlib.suppress(UserError):
      found[key] = read()
  return found


def _named(stage: StageSettings, split: str) -> tuple[str, tuple[str, ...], str]:
  """The data of a split as a config names them, with the fields and templates that apply."""
  data = stage.data
  return getattr(data, split), data.fields, data.templates


def _data_digest(spec: str, fields: tuple[str, ...], templates: str) -> str:
  return open_source(spec, fields, templates=templates).digest


def _at(values: Any, key: str) -> Any:
  for name in key.split("."):
    values = values.get(name) if isinstance(values, Mapping) else None
  return values
