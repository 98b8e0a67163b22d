"""States at some output positions: those of the full pass, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from tests.backbones.encoder_cases import inputs as texts

pytestmark = pytest.mark.program

SIZES = {"vocab_size": 60, "width": 24, "heads": 3, "head_dim": 8, "mlp_width": 40, "context": 32}
KINDS = {
  "post_norm": {},
  "one_layer": {"layers": 1},
  "pre_norm_with_buckets": {
    **{"norm": "rms", "norm_first": True, "positions": "buckets", "buckets": 8, "types": 0},
    **{"bucket_distance": 12, "embed_norm": False, "scaled": False, "gated": True},
  },
  "rotary_and_local": {
    **{"norm_first": True, "skip_first_norm": True, "positions": "rotary", "types": 0, "window": 3},
    "local": (False, True, True),
  },
}
POSITIONS = np.array([[0, 5, 5, 11], [22, 1, 0, 3], [7, 6, 5, 4]], np.int32)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def gradients_and_states(inputs, config, trained, remat, only):
  """Of a weighted sum of the states at POSITIONS; only: of these alone, not of the full pass."""
  tokens, mask, types = texts(config, "right")

  def total(inputs):
    x = inputs["x"] + encoder.embed(inputs["params"], config, tokens, trained=trained)
    options = {"trained": trained, "remat": remat}
    if only:
      states = encoder.hidden(inputs["params"], config, x, mask, types, POSITIONS, **options)
    else:
      states = encoder.hidden(inputs["params"], config, x, mask, types, **options)
      states = jnp.take_along_axis(states, POSITIONS[..., None], axis=1)
    return (states * weight(config)).sum(), states

  return jax.grad(total, has_aux=True)(inputs)


def weight(config):
  shape = (*POSITIONS.shape, config.width)
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  "kind, trained, remat",
  [
    ("post_norm", False, "none"),
    ("post_norm", True, "full"),
    ("one_layer", False, "attention"),
    ("one_layer", True, "none"),
    ("pre_norm_with_buckets", False, "full"),
    ("pre_norm_with_buckets", True, "none"),
    ("rotary_and_local", False, "attention"),
    ("rotary_and_local", True, "full"),
  ],
)
def test_states_at_output_positions_and_their_gradients(kind, trained, remat):
  config = EncoderConfig(**{**SIZES, "layers": 3} | KINDS[kind])
  params = encoder.random_params(config, jax.random.key(0))
  tokens, _, _ = texts(config, "right")
  given = {"params": params, "x": np.zeros((*tokens.shape, config.width), np.float32)}
  gradients, states = gradients_and_states(given, config, trained, remat, True)
  expected, full = gradients_and_states(given, config, trained, "none", False)
  assert states.shape == (*POSITIONS.shape, config.width)
  np.testing.assert_allclose(states, full, atol=1e-5)
  assert np.abs(expected["x"]).max() > 0
  for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1))
