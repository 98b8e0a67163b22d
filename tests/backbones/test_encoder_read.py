"""States at some positions alone: those of the full pass, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from tests.backbones.encoder_cases import inputs

SIZES = {"vocab_size": 60, "width": 24, "heads": 3, "head_dim": 8, "mlp_width": 40, "context": 32}
KINDS = {
  "post_norm": {},
  "one_layer": {"layers": 1},
  "pre_norm_with_buckets": {
    **{"norm": "rms", "norm_first": True, "positions": "buckets", "buckets": 8, "types": 0},
    **{"bucket_distance": 12, "embed_norm": False, "scaled": False, "gated": True},
  },
  "rotary_and_local": {
    **{"norm_first": True, "bare_start": True, "positions": "rotary", "types": 0, "window": 3},
    "local": (False, True, True),
  },
}
READ = np.array([[0, 5, 5, 11], [22, 1, 0, 3], [7, 6, 5, 4]], np.int32)


@pytest.mark.parametrize("trained, remat", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_read_and_their_gradients_are_those_of_the_full_pass(kind, trained, remat):
  config = EncoderConfig(**{**SIZES, "layers": 3} | KINDS[kind])
  params = encoder.random_params(config, jax.random.key(0))
  tokens, mask, types = inputs(config, "right")
  weight = np.random.default_rng(1).normal(size=(*READ.shape, config.width)).astype(np.float32)

  def total(given, only):
    x = given["x"] + encoder.embed(given["params"], config, tokens, trained=trained)
    more = {"trained": trained, "remat": remat}
    if only:
      states = encoder.hidden(given["params"], config, x, mask, types, READ, **more)
    else:
      states = encoder.hidden(given["params"], config, x, mask, types, **more)
      states = jnp.take_along_axis(states, READ[..., None], axis=1)
    return (states * weight).sum(), states

  given = {"params": params, "x": np.zeros((*tokens.shape, config.width), np.float32)}
  run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
  (slopes, states), (expected, full) = run(given, True), run(given, False)
  assert states.shape == (*READ.shape, config.width)
  np.testing.assert_allclose(states, full, atol=1e-5)
  assert np.abs(expected["x"]).max() > 0
  for ours, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1))
