"""Vectors before the embedded text: before each row, or once for all rows of a batch.

A decoder reads what comes first without what comes after it. So a prompt that is the same for all
rows has the same states in all of them, and a pass needs to compute them once (`joined_rows`).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.rope import DEPENDS_ON_LENGTH
from frozen_jax.core.types import Size
from frozen_jax.sharding.activations import mesh_of


def prepend(
  prompt: Float[Array, "*N P D"] | None,
  embedded: Float[Array, "B T D"],
  mask: Int[Array | np.ndarray, "B T"],
) -> tuple[Float[Array, "B _ D"], Int[Array | np.ndarray, "B _"]]:
  """Joins a prompt [P, D] or [B, P, D] to embedded text [B, T, D] with its mask [B, T].

  Returns ([B, P + T, D] in the dtype of the text, mask [B, P + T]). Prompt positions are always
  real; with None the text comes back unchanged.
  """
  if prompt is None:
    return embedded, mask
  rows = embedded.shape[0]
  prompt = jnp.broadcast_to(prompt, (rows, *prompt.shape[-2:])).astype(embedded.dtype)
  ones = jnp.ones((rows, prompt.shape[1]), mask.dtype)
  return jnp.concatenate([prompt, embedded], 1), jnp.concatenate([ones, mask], 1)


def can_share(
  config: DecoderConfig, prompt: Float[Array, "*N P D"], rows: Size, like: Float[Array, "..."]
) -> bool:
  """Whether so many rows can share the states of a prompt; like: a weight of the model.

  They cannot where each row has its own, where its keys depend on the length of the row, and where
  the mesh splits the rows: each device would compute the prompt. For one row it changes nothing.
  """
  ropes = [rope.kind for rope in (config.rope, config.local_rope) if rope is not None]
  is_rotated_alike = config.positions != "rotary" or not set(ropes) & set(DEPENDS_ON_LENGTH)
  return prompt.ndim == 2 and rows != 1 and is_rotated_alike and mesh_of(like) is None
