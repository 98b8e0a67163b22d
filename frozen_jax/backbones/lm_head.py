"""The LM head: its kernel, and how its products are split over a mesh."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.decoder_params import Params
from frozen_jax.backbones.quantized import Quantized
from frozen_jax.core.types import HostOrDevice
from frozen_jax.sharding.activations import constrain, mesh_of


class SplitHead(NamedTuple):
  """States and kernel as they are multiplied, and how their product, the logits, is constrained."""

  states: Float[Array, "*N D"]
  kernel: Float[Array, "V D"] | Float[Array, "D V"] | Quantized
  split: Callable[[Array], Array]


def kernel_and_axis(
  params: Params, config: DecoderConfig
) -> tuple[Float[Array, "V D"] | Float[Array, "D V"] | Quantized, int]:
  """The kernel of the LM head, and the axis over which it is summed (see `linear.project`)."""
  return (params["embed"]["tokens"], 1) if config.tied else (params["head"]["kernel"], 0)


def soft_capped(scores: Float[Array, "*N"], cap: float | None) -> Float[Array, "*N"]:
  """Scores kept between -cap and cap by tanh (Gemma 2); unchanged if there is no cap."""
  return scores if cap is None else cap * jnp.tanh(scores / cap)


def split_head(
  params: Params, config: DecoderConfig, states: Float[HostOrDevice, "*N D"]
) -> SplitHead:
  """The product with the head, so that the smaller of states and head is moved.

  Few states, such as those at targets, go to all devices of `fsdp`, of which each has a part of the
  vocabulary. Many stay where they are, and the head is gathered.
  """
  kernel, axis = kernel_and_axis(params, config)
  like = params["final_norm"]["scale"]
  few = mesh_of(like) is None or states.size // states.shape[-1] < config.vocab_size
  batch, vocab = ("data_batch", "fsdp_vocab") if few else ("batch", "vocab")
  between = (None,) * (states.ndim - 2)
  kernel_axes = (vocab, None) if axis == 1 else (None, vocab)
  return SplitHead(
    constrain(jnp.asarray(states), batch, *between, None, like=like),
    jax.tree.map(lambda a: constrain(a, *kernel_axes), kernel),
    lambda logits: constrain(logits, batch, *between, vocab, like=like),
  )
