"""The prompt generator against torch, its gradients and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from frozen_jax.modules.prompt_generator import GeneratorConfig, PromptGenerator

ENCODER, LM, ROWS, LENGTH = 12, 20, 3, 7
SIZES = GeneratorConfig(length=5, width=16, heads=4, layers=2, zero_output=False)
STATES = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, ENCODER))
MASK = jnp.asarray([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0]])


def generator(config=SIZES):
  return PromptGenerator(ENCODER, LM, config, output_scale=0.3, rngs=nnx.Rngs(0))


def tensor(a):
  return torch.tensor(np.asarray(a))


def torch_attention(module, x, context, mask):
  """The same weights in torch's own scaled dot-product attention."""
  split = lambda a, layer: torch.einsum("btd,dhc->bhtc", a, tensor(layer.kernel[...]))
  q, k, v = split(x, module.query), split(context, module.key), split(context, module.value)
  mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
  return torch.einsum("bhtc,hcd->btd", mixed, tensor(module.out.kernel[...]))


def torch_block(block, x, context, mask):
  norm = lambda layer, a: torch.nn.functional.rms_norm(
    a, a.shape[-1:], tensor(layer.scale[...]), 1e-6
  )
  linear = lambda layer, a: a @ tensor(layer.kernel[...]) + tensor(layer.bias[...])
  normed = norm(block.norm, x)
  seen = normed if context is None else norm(block.context_norm, context)
  x = x + torch_attention(block.attention, normed, seen, mask)
  inner = torch.nn.functional.gelu(linear(block.up, norm(block.mlp_norm, x)), approximate="tanh")
  return x + linear(block.down, inner)


def test_it_computes_what_torch_computes():
  module = generator()
  x = tensor(module.queries[...]).expand(ROWS, -1, -1)
  x = torch_block(module.cross_attention, x, tensor(STATES), tensor(MASK)[:, None, None, :] > 0)
  for index in range(module.config.layers):
    block = getattr(module, f"block_{index}")
    x = torch_block(block, x, None, None)
  x = torch.nn.functional.rms_norm(x, x.shape[-1:], tensor(module.final_norm.scale[...]), 1e-6)
  want = (x @ tensor(module.output_proj.kernel[...])).numpy() * 0.3
  got = jax.jit(lambda s, m: module(s, m))(STATES, MASK)
  assert got.shape == (ROWS, 5, LM)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_is_masked_counts_for_nothing_and_length_does_not_matter():
  module = generator()
  result = module(STATES, MASK)
  noise = STATES + 100 * (1 - MASK[..., None])
  np.testing.assert_allclose(module(noise, MASK), result, atol=1e-6)
  np.testing.assert_allclose(module(STATES[1:2, :3], MASK[1:2, :3]), result[1:2], atol=1e-6)
  assert np.abs(np.asarray(result[0] - result[1])).max() > 1e-3  # it does depend on the text


def test_gradients_reach_every_part_and_the_states():
  graph, params = nnx.split(generator())
  weight = jax.random.normal(jax.random.key(2), (ROWS, 5, LM))
  total = lambda params, states: (nnx.merge(graph, params)(states, MASK) * weight).sum()
  grads, to_states = jax.grad(total, argnums=(0, 1))(params, STATES)
  assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))
  reached = np.abs(np.asarray(to_states)).max(axis=-1) > 0
  np.testing.assert_array_equal(reached, np.asarray(MASK) > 0)


def test_with_zero_output_it_starts_as_nothing():
  module = generator(GeneratorConfig(length=5, width=16, heads=4))
  assert not np.any(module(STATES, MASK))


@pytest.mark.parametrize("wrong", [{"length": 0}, {"width": 10, "heads": 4}])
def test_sizes_that_do_not_fit(wrong):
  with pytest.raises(ValueError, match="length|heads"):
    GeneratorConfig(**wrong)
