"""How likely a decoder holds given targets: the vocabulary projection where there is a target."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig


def target_log_likelihood(
  params: decoder.Params,
  config: DecoderConfig,
  states: Float[Array, "B M D"],
  target_ids: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
  """Hidden states at M gathered positions and the token wanted at each -> what the model says.

  Returns the log-likelihood of each target in nats, float32 [B, M], and whether the target is the
  arg max, bool [B, M].
  """
  scores = decoder.logits(params, config, states)
  wanted = jnp.take_along_axis(scores, target_ids[..., None], axis=-1)[..., 0]
  likelihood = wanted - jax.nn.logsumexp(scores, axis=-1)
  return likelihood, jnp.argmax(scores, axis=-1) == target_ids
