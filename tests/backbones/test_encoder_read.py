"""States at some output positions: those of the full pass, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from tests.backbones.encoder_cases import inputs

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


@pytest.mark.parametrize(
  "trained, remat", [(False, "none"), (True, "none"), (True, "full"), (False, "attention")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_states_at_output_positions_and_their_gradients(kind, trained, remat):
  config = EncoderConfig(**{**SIZES, "layers": 3} | KINDS[kind])
  params = encoder.random_params(config, jax.random.key(0))
  tokens, mask, types = inputs(config, "right")
  weight = np.random.default_rng(1).normal(size=(*POSITIONS.shape, config.width)).astype(np.float32)

  def total(inputs, only):
    x = inputs["x"] + encoder.embed(inputs["params"], config, tokens, trained=trained)
    options = {"trained": trained, "remat": remat}
    if only:
      states = encoder.hidden(inputs["params"], config, x, mask, types, POSITIONS, **options)
    else:
      states = encoder.hidden(inputs["params"], config, x, mask, types, **options)
      states = jnp.take_along_axis(states, POSITIONS[..., None], axis=1)
    return (states * weight).sum(), states

  differentiated = {"params": params, "x": np.zeros((*tokens.shape, config.width), np.float32)}
  run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
  (gradients, states), (expected, full) = run(differentiated, True), run(differentiated, False)
  assert states.shape == (*POSITIONS.shape, config.width)
  np.testing.assert_allclose(states, full, atol=1e-5)
  assert np.abs(expected["x"]).max() > 0
  for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1))
