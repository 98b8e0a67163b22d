"""The encoder's gradients if it is trained, rematerialisation and bfloat16 weights."""

import functools

import jax
import numpy as np
import pytest
import torch

from frozen_jax.backbones import encoder
from frozen_jax.backbones.load_encoder import load_encoder
from frozen_jax.core import paths
from tests.backbones.encoder_cases import LENGTH, inputs, make, run

pytestmark = pytest.mark.program


def torch_gradients(model, name, total, folder):
  """torch's gradients of `total` by our paths: saved and loaded as if they were a model."""
  model.zero_grad()
  total.backward()
  gradients = make(name)
  with torch.no_grad():
    for copy, source in zip(gradients.parameters(), model.parameters(), strict=True):
      copy.copy_(torch.zeros_like(copy) if source.grad is None else source.grad)
  gradients.save_pretrained(folder)
  return paths.flatten(load_encoder(str(folder), progress=False).params)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
@functools.partial(jax.grad)
def gradients(params, config, trained, remat, tokens, mask, types, weight):
  x = encoder.embed(params, config, tokens, trained=trained)
  states = encoder.hidden(params, config, x, mask, types, trained=trained, remat=remat)
  return (states * weight).sum()


@pytest.mark.parametrize(
  "name, remat",
  [
    ("bert", "none"),
    ("bert_many_types", "full"),
    ("electra", "none"),
    ("t5_gated", "none"),
    ("t5", "full"),
    ("modernbert_biased", "none"),
  ],
)
def test_parameter_gradients_of_a_trained_encoder_equal_torch(encoder_pair, name, remat, tmp_path):
  model, loaded = encoder_pair(name)
  config = loaded.config
  tokens, mask, types = inputs(config, "right")
  weight = np.random.default_rng(1).normal(size=(3, LENGTH, config.width)).astype(np.float32)
  weight *= mask[..., None]
  x = model.get_input_embeddings()(torch.tensor(tokens))
  out = run(model, config, x, mask, types)
  total = (out.last_hidden_state * torch.tensor(weight)).sum()
  theirs = torch_gradients(model, name, total, tmp_path)
  ours = paths.flatten(gradients(loaded.params, config, True, remat, tokens, mask, types, weight))
  assert ours.keys() == theirs.keys()
  for path, gradient in ours.items():
    scale = np.abs(theirs[path]).max()
    # A key's bias adds the same to all scores of a query, so that it changes nothing.
    assert scale > 1e-2 or path == "layers/attn/k/bias", path
    np.testing.assert_allclose(gradient, theirs[path], atol=1e-4 * max(1, scale), err_msg=path)


@pytest.mark.parametrize("name", ["bert", "t5_gated"])
def test_a_frozen_encoder_has_no_parameter_gradients(encoder_pair, name):
  _, loaded = encoder_pair(name)
  tokens, mask, types = inputs(loaded.config, "right")
  arguments = (
    loaded.params,
    loaded.config,
    False,
    "none",
    tokens,
    mask,
    types,
    1.0 * mask[..., None],
  )
  by_path = paths.flatten(gradients(*arguments))
  by_path.pop("embed/tokens")  # `embed` is not frozen: its result is an input, which has a gradient
  assert by_path and all(np.abs(gradient).max() == 0 for gradient in by_path.values())


@pytest.mark.parametrize(
  "name, policy", [("bert", "full"), ("t5_gated", "attention"), ("modernbert", "offload")]
)
def test_rematerialisation_changes_nothing(encoder_pair, name, policy):
  _, loaded = encoder_pair(name)
  tokens, mask, _ = inputs(loaded.config, "right")
  x = encoder.embed(loaded.params, loaded.config, tokens)

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(x, remat):
    states = lambda x: encoder.hidden(loaded.params, loaded.config, x, mask, remat=remat)
    return jax.grad(lambda x: (states(x) ** 3).sum())(x)

  one, other = gradient(x, "none"), gradient(x, policy)
  np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("name", ["bert", "t5_gated", "modernbert"])
def test_bfloat16_is_close_to_float32(encoder_pair, name):
  _, loaded = encoder_pair(name)
  config = loaded.config
  tokens, mask, _ = inputs(config, "right")
  narrow = jax.tree.map(lambda a: a.astype("bfloat16"), loaded.params)
  wide = jax.tree.map(lambda a: a.astype("float32"), narrow)
  weight = np.random.default_rng(1).normal(size=(3, LENGTH, config.width)) * mask[..., None]

  @jax.jit
  def both(params):
    def total(x):
      states = encoder.hidden(params, config, x, mask)
      assert states.dtype == x.dtype
      return (states * weight).sum(), states

    x = encoder.embed(params, config, tokens)
    gradient, states = jax.grad(total, has_aux=True)(x)
    return gradient.astype("float32"), states.astype("float32")[mask > 0]

  (gradient, states), (gradient_narrow, states_narrow) = both(wide), both(narrow)
  assert np.abs(states - states_narrow).mean() < 0.02 * np.abs(states).mean()
  assert np.linalg.norm(gradient - gradient_narrow) < 0.05 * np.linalg.norm(gradient)


@pytest.mark.parametrize("name", ["bert", "t5_gated"])
def test_the_compiled_gradient_holds_no_weight_cotangent(encoder_pair, name):
  _, loaded = encoder_pair(name)
  tokens, mask, _ = inputs(loaded.config, "none")
  x = encoder.embed(loaded.params, loaded.config, tokens)
  total = lambda x, params: encoder.hidden(params, loaded.config, x, mask).sum()
  flops = lambda run: jax.jit(run).lower(x, loaded.params).compile().cost_analysis()["flops"]
  assert flops(jax.grad(total)) < 2.6 * flops(total)  # 3 and more with the weights' cotangents
