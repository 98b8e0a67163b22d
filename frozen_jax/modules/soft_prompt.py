"""The soft prompt: P trained vectors before the embedded text (Lester et al., 2021).

How a prompt is joined to the text is in `backbones.prompts`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def position(layer: int = 0) -> str:
  """Where a prompt acts that joins the text after so many layers; see `Method.part_positions`."""
  return f"before the text after layer {layer}" if layer else "before the embedded text"


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
