"""`load_adapter`: a tuned model from a workdir or an exported folder, with how it answers.

A folder of PEFT and a `.npy` prompt are read too, by `export.peft_reading`.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.backbones import hub
from frozen_jax.config.section import resolve
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.seed_folders import seeds_in, several_runs
from frozen_jax.core.types import Tree
from frozen_jax.core.user_path import user_path
from frozen_jax.data.settings import InputSettings
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.export.peft_reading import read_foreign, tuned_model
from frozen_jax.methods import METHODS
from frozen_jax.models.adapter_folder import ADAPTER_JSON, read_adapter
from frozen_jax.models.frozen_lm import FrozenLM, with_encoder
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.cascade.inference import TwoPassInference

ADAPTER = "adapter"  # within a workdir


def load_adapter(path: str | AnyPath, lm: FrozenLM) -> TunedModel:
  """Reads a workdir whose run is complete, or an exported adapter, onto its frozen LM.

  Or a folder of PEFT, or the `.npy` file of a prompt, as far as a method here computes the same;
  these do not say which LM they belong to, so sizes alone are compared. `hf:owner/name[@revision]`
  is an exported adapter, or one of PEFT, on the hub.

  Raises UserError where there is none, where it is damaged, or for another frozen LM.
  """
  place = _located(path)
  if not _own_folder(place) and (foreign := read_foreign(place)):
    return tuned_model(foreign, lm)
  tree, info = read_stored(place)
  if info["frozen_fingerprint"] != lm.fingerprint:
    raise UserError(
      f"the adapter in {path} belongs to another base model ({info['model']}, fingerprint"
      f" {info['frozen_fingerprint'][:12]}); this one is {lm.name} ({lm.fingerprint[:12]}): load"
      " the model it was trained on"
    )
  if info["method"] not in METHODS:
    raise UserError(
      f"the adapter in {path} is of the method {info['method']!r}, which this frozen_jax does not"
      f" have; it has {', '.join(METHODS)}"
    )
  try:
    if info["encoder_fingerprint"]:
      lm = _with_encoder_of(info, lm, path)
    model = _tuned_model(jax.tree.map(jnp.asarray, tree), info, lm)
  except (AttributeError, KeyError, TypeError) as error:
    reason = f"{type(error).__name__}: {error}"
    raise UserError(f"{ADAPTER_JSON} in {path} is damaged ({reason}); export it again") from error
  _check_arrays(tree, model, path)
  return model


def read_stored(path: str | AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
  """The stored tree and description of a workdir or an exported folder; UserError without one."""
  path = _located(path)
  if folder := _own_folder(path):
    return read_adapter(folder)
  if not path.exists():
    raise UserError(f"no such folder: {path}; give a workdir or an exported adapter")
  if not path.is_dir():
    raise UserError(
      f"{path} is a file; give the folder of the adapter, or the .npy file of a prompt"
    )
  if seeds := seeds_in(path):
    raise UserError(several_runs(path, seeds))
  raise UserError(f"no adapter in {path}; let the training run there come to its end first")


def _located(path: str | AnyPath) -> AnyPath:
  """The path of what a user gave; of an adapter on the hub, the folder with its files."""
  of_hub = str(path).startswith(hub.PREFIX)
  return hub.fetch_adapter(str(path)) if of_hub else user_path(path)


def _own_folder(path: AnyPath) -> AnyPath | None:
  """The folder of an adapter that was trained here, if there is one in a workdir or a folder."""
  return next((one for one in (path / ADAPTER, path) if (one / ADAPTER_JSON).exists()), None)


def stored_arrays(path: str | AnyPath) -> Tree:
  """The arrays of whatever `load_adapter` reads there, as they are stored.

  Raises UserError where there is none, and where it is damaged.
  """
  path = _located(path)
  if not _own_folder(path) and (foreign := read_foreign(path)):
    return foreign.tensors
  return read_stored(path)[0]


def _tuned_model(tree: Tree, info: dict[str, Any], lm: FrozenLM) -> TunedModel:
  method = METHODS[info["method"]]
  sections = {
    name: resolve(kind, info["sections"].get(name, {}), name)
    for name, kind in method.sections.items()
  }
  inputs = resolve(InputSettings, info["inputs"], "data")
  inference = info["inference"]
  return TunedModel(
    lm,
    method.build(lm, sections, datasets=inputs.datasets),
    tree.get("trained", {}),
    tree.get("frozen_inputs", {}),
    inputs=inputs,
    generation=resolve(GenerationSettings, info["generation"], "evaluate"),
    sections=sections,
    inference=None if inference is None else TwoPassInference.from_json(inference),
  )


def _check_arrays(tree: dict[str, Any], model: TunedModel, path: str | AnyPath) -> None:
  """UserError where a stored tree is not what the method trains and reads: names, shapes, types."""
  forms = lambda tree: {name: (one.shape, one.dtype) for name, one in paths.flatten(tree).items()}
  start = jax.eval_shape(lambda: model.method.init(model.lm, jax.random.key(0)))
  stored, wanted = forms(tree), forms({"trained": start})
  for name, (shape, _) in stored.items():  # of stages before: prompts of any length
    if re.fullmatch(r"frozen_inputs(/\w+)+", name):
      size = (model.lm.config.width,) if name.endswith("/vectors") else shape[-1:]
      wanted[name] = (*shape[:-1], *size), np.dtype(np.float32)
  if stored != wanted:
    differing = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
    raise UserError(
      f"the arrays in {path} are not those that {model.method.name} trains under its settings"
      f" (different: {', '.join(differing[:3])}); export it again"
    )


def _with_encoder_of(info: dict[str, Any], lm: FrozenLM, path: str | AnyPath) -> FrozenLM:
  """The LM with the text encoder that the adapter was trained with; UserError for another one."""
  lm = with_encoder(lm, info["encoder"], info["dtype"])
  encoder, wanted = lm.encoder, info["encoder_fingerprint"]
  if encoder is None or encoder.fingerprint != wanted:
    this = "there is none here" if encoder is None else f"this one is {encoder.name}"
    raise UserError(
      f"the adapter in {path} was trained with another text encoder ({info['encoder']}, fingerprint"
      f" {wanted[:12]}); {this}: give the one it was trained with"
    )
  return dataclasses.replace(lm, encoder=encoder)
