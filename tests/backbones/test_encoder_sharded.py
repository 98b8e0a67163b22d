"""The encoder on eight simulated devices equals the encoder on one."""

import jax
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.load_encoder import load_encoder
from frozen_jax.sharding import rules
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.encoder_cases import make

pytestmark = pytest.mark.program


@pytest.mark.parametrize("name", ["bert", "electra", "t5_gated", "modernbert"])
def test_states_and_gradient_on_eight_devices_equal_one(name, tmp_path):
  make(name).save_pretrained(tmp_path)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  one = load_encoder(str(tmp_path), progress=False)
  eight = load_encoder(str(tmp_path), mesh=mesh, progress=False)
  config = one.config
  tokens = np.random.default_rng(0).integers(5, 60, (4, 11))
  mask = (np.arange(11)[None] < np.array([11, 7, 4, 9])[:, None]).astype(np.int32)
  weight = np.random.default_rng(1).normal(size=(4, 11, config.width)).astype(np.float32)

  @jax.jit
  def run(params, tokens, mask, weight):
    def total(x):
      states = encoder.hidden(params, config, x, mask)
      return (states * weight * mask[..., None]).sum(), states

    gradient, states = jax.grad(total, has_aux=True)(encoder.embed(params, config, tokens))
    return gradient, states

  sharded = [jax.device_put(a, rules.batch_sharding(mesh)) for a in (tokens, mask, weight)]
  gradient, states = run(one.params, tokens, mask, weight)
  gradient8, states8 = run(eight.params, *sharded)
  assert len(states8.sharding.device_set) == 8
  np.testing.assert_allclose(states8, states, atol=1e-5)
  np.testing.assert_allclose(gradient8, gradient, rtol=1e-5, atol=1e-5)
