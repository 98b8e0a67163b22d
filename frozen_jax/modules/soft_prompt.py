"""The soft prompt: P trained vectors that stand before the embedded text (Lester et al., 2021).

Making a prompt and joining it to the text are kept apart: whatever makes vectors [P, D] or
[B, P, D] is joined by the one function here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class SoftPrompt(nnx.Module):
  """Trained vectors [P, D], a float32 master copy (half-precision prompts go NaN under Adam)."""

  def __init__(self, initial: jax.Array):
    self.vectors = nnx.Param(jnp.asarray(initial, jnp.float32))


def repeated(token_ids: Sequence[int], length: int) -> jax.Array:
  """The tokens of a text, repeated or cut to `length`: [P]; a good place to start from."""
  return jnp.resize(jnp.asarray(token_ids, jnp.int32), (length,))


def random_ids(key: jax.Array, vocab_size: int, length: int) -> jax.Array:
  """`length` tokens drawn from the vocabulary without replacement: [P]."""
  return jax.random.choice(key, vocab_size, (length,), replace=False)


def prepend(
  prompt: jax.Array | None, embedded: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Joins a prompt [P, D] or [B, P, D] to embedded text [B, T, D] with its mask [B, T].

  Returns ([B, P + T, D] in the dtype of the text, mask [B, P + T]). Prompt positions are always
  real; with None the text comes back as it is.
  """
  if prompt is None:
    return embedded, mask
  rows = embedded.shape[0]
  prompt = jnp.broadcast_to(prompt, (rows, *prompt.shape[-2:])).astype(embedded.dtype)
  ones = jnp.ones((rows, prompt.shape[1]), mask.dtype)
  return jnp.concatenate([prompt, embedded], 1), jnp.concatenate([ones, mask], 1)


def pure(prompt: SoftPrompt) -> dict[str, jax.Array]:
  """The prompt's parameters as plain dicts: {"vectors": [P, D]}."""
  return nnx.to_pure_dict(nnx.state(prompt, nnx.Param))


def vectors(tree: dict, name: str) -> jax.Array | None:
  """The prompt [P, D] that a tree holds under `name`, or None where it holds none."""
  return tree[name]["vectors"] if name in tree else None
