"""What frozen models make of training texts, kept so that none of them is read twice.

The states of a frozen text encoder, and those of a recursive LM's first pass.
"""

import hashlib
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.config.dependencies import changed_fields
from frozen_jax.core.types import CachesFirstPass, Tree
from frozen_jax.data.encoded_batches import ENCODED_ROWS, ENCODER, FIRST_PASS, StateKeys, TextStates
from frozen_jax.data.feature_store import FeatureStore, store_folder
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.rules import row_groups

_FIRST_PASS_FOLDER = "first_pass_states"


def text_states(model: TunedModel) -> TextStates | None:
  """The states for a method's batches that training does not change; None where it has none.

  None also on several hosts, each of which holds but a part of the models: there texts are read
  within the step.
  """
  if jax.process_count() > 1:
    return None
  if model.method.encoder_input == "encoder_states" and model.lm.encoder is not None:
    return _encoder_states(model)
  if isinstance(model.method, CachesFirstPass) and model.method.caches_first_pass:
    return _first_pass_states(model, model.method)
  return None


def _encoder_states(model: TunedModel) -> TextStates:
  encoder = model.lm.encoder
  fingerprint, longest = encoder.texts_fingerprint, encoder.config.max_tokens
  return _states(model, encoder.hidden, fingerprint, "encoder_states", ENCODER, longest)


def _first_pass_states(model: TunedModel, method: CachesFirstPass) -> TextStates:
  """They depend on the LM, on how it computes, and on the frozen prompt before the pass."""
  depends_on = {
    "lm": model.lm.fingerprint,
    "config": changed_fields(model.lm.config),
    "weights": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model.lm.params)}),
    "layers": method.first_pass_layers,
    "first_prompt": checksum(model.frozen["frozen_inputs"].get("first_prompt", {})),
  }
  text = json.dumps(depends_on, sort_keys=True)
  fingerprint = hashlib.sha256(text.encode()).hexdigest()
  compute = jax.jit(method.first_pass_states)
  read = lambda tokens, mask: compute(model.frozen, tokens, mask)
  reserved = model.method.num_virtual_tokens(model.trained, model.frozen)
  max_width = model.lm.config.context - reserved
  return _states(model, read, fingerprint, _FIRST_PASS_FOLDER, FIRST_PASS, max_width)


def _states(
  model: TunedModel,
  read: Callable[[jax.Array, jax.Array], jax.Array],
  fingerprint: str,
  kind: str,
  keys: StateKeys,
  max_width: int,
) -> TextStates:
  """States in the store of this fingerprint; `read`: tokens, mask [N, tokens] -> their states."""
  mesh, ids = model.lm.mesh, jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shape = jax.eval_shape(read, ids, ids)
  store = FeatureStore(store_folder(fingerprint, shape.dtype, kind), shape.shape[-1], shape.dtype)

  def compute(tokens: np.ndarray, mask: np.ndarray) -> Tree:
    batch = shard_batch({"tokens": tokens, "mask": mask}, mesh)
    return read(batch["tokens"], batch["mask"])

  groups = 1 if mesh is None else row_groups(mesh)
  return TextStates(store, compute, -(-ENCODED_ROWS // groups) * groups, keys, max_width)
