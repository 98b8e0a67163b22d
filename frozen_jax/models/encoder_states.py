"""The states of a frozen text encoder, kept so that no training text is encoded twice."""

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.core.types import Method
from frozen_jax.data.encoded_batches import ENCODED_ROWS, TextStates
from frozen_jax.data.feature_store import FeatureStore, store_folder
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.rules import row_groups


def text_states(method: Method, lm: FrozenLM) -> TextStates | None:
  """The encoder states of a method's batches; None where it encodes texts itself.

  Also on several hosts, each of which holds but a part of the encoder: there texts are encoded
  within the step.
  """
  encoder, mesh = lm.encoder, lm.mesh
  if method.encoder_input != "encoder_states" or encoder is None or jax.process_count() > 1:
    return None
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  dtype = np.dtype(jax.eval_shape(encoder.hidden, ids, ids).dtype)
  folder = store_folder(encoder.texts_fingerprint, dtype)
  store = FeatureStore(folder, encoder.config.width, dtype)

  def encode(tokens: np.ndarray, mask: np.ndarray) -> jax.Array:
    longest = encoder.config.max_tokens  # padding may go beyond it, no text does
    batch = shard_batch({"tokens": tokens[:, :longest], "mask": mask[:, :longest]}, mesh)
    return encoder.hidden(batch["tokens"], batch["mask"])

  groups = 1 if mesh is None else row_groups(mesh)
  return TextStates(store, encode, -(-ENCODED_ROWS // groups) * groups)
