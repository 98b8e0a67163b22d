"""The soft prompt: P trained vectors before the embedded text (Lester et al., 2021).

Making a prompt and joining it to the text are separate: `prepend` joins vectors [P, D] or
[B, P, D], whatever made them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray


def prompt_params(initial: Float[Array, "*N P D"]) -> dict[str, Float[Array, "*N P D"]]:
  """The parameters of a prompt that starts here: {"vectors": ...}, [P, D] or [N, P, D].

  They are a float32 master copy: half-precision prompts go NaN under Adam.
  """
  return {"vectors": jnp.asarray(initial, jnp.float32)}


def prompt_vectors(tree: Mapping[str, Any], name: str) -> Float[Array, "*N P D"] | None:
  """The prompt [P, D] or [N, P, D] that a tree holds under `name`, or None where it holds none."""
  return tree[name]["vectors"] if name in tree else None


def repeat_to_length(token_ids: Sequence[int], length: int) -> Int[Array, "P"]:
  """The tokens of a text, repeated or cut to `length`: [P]."""
  return jnp.resize(jnp.asarray(token_ids, jnp.int32), (length,))


def random_token_ids(key: PRNGKeyArray, vocab_size: int, length: int) -> Int[Array, "P"]:
  """`length` tokens drawn from the vocabulary without replacement: [P]."""
  return jax.random.choice(key, vocab_size, (length,), replace=False)


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
