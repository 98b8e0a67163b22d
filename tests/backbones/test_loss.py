"""The blockwise log-likelihood against the plain one, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder, loss
from frozen_jax.backbones.config import DecoderConfig


def config(vocab, tied, **more):
  sizes = {"width": 12, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 8}
  return DecoderConfig(vocab_size=vocab, tied=tied, **sizes, **more)


def plain(params, config, states, ids):
  scores = decoder.logits(params, config, states)
  log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(scores), ids[..., None], axis=-1)[..., 0]
  return log_likelihood, jnp.argmax(scores, axis=-1) == ids


MODELS = pytest.mark.parametrize(
  "vocab,tied,more",
  [
    (96, True, {}),
    (96, False, {}),
    (101, True, {}),
    (120, False, {"head_bias": True}),
    (96, True, {"logit_cap": 3.0}),
    (101, False, {"head_bias": True, "logit_cap": 2.0}),
  ],
)


@pytest.mark.parametrize("block_size", [10, 150, 2**20])
@MODELS
def test_blocks_equal_the_plain_loss(monkeypatch, vocab, tied, more, block_size):
  monkeypatch.setattr(loss, "LOGITS_PER_BLOCK", block_size)
  assert_equals_the_plain_loss(vocab, tied, more)


@pytest.mark.parametrize("most", [2**28, 300])  # of logits: the targets at once, or one by one
@MODELS
def test_elsewhere_than_on_a_cpu_it_is_the_plain_loss(monkeypatch, vocab, tied, more, most):
  monkeypatch.setattr(loss, "platform_of", lambda array: "tpu")
  monkeypatch.setattr(loss, "LOGITS_PER_DEVICE", most)
  assert_equals_the_plain_loss(vocab, tied, more)


def assert_equals_the_plain_loss(vocab, tied, more):
  size = config(vocab, tied, **more)
  params = decoder.random_params(size, jax.random.key(0))
  states = 5 * jax.random.normal(jax.random.key(1), (2, 3, size.width))
  likeliest = jnp.argmax(decoder.logits(params, size, states), axis=-1)
  ids = jnp.where(
    jnp.arange(3) == 1, likeliest, jax.random.randint(jax.random.key(2), (2, 3), 0, vocab)
  )
  weight = jax.random.normal(jax.random.key(3), ids.shape)

  def run(function):
    total = lambda states: (function(params, size, states, ids)[0] * weight).sum()
    return *jax.jit(lambda s: function(params, size, s, ids))(states), jax.jit(jax.grad(total))(
      states
    )

  for ours, theirs in zip(run(loss.target_log_likelihood), run(plain), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_extreme_logits_stay_finite(monkeypatch):
  monkeypatch.setattr(loss, "LOGITS_PER_BLOCK", 48)
  size = config(96, True)
  params = decoder.random_params(size, jax.random.key(0))
  states = 1e4 * jax.random.normal(jax.random.key(1), (1, 2, size.width))
  value, gradient = jax.value_and_grad(
    lambda s: loss.target_log_likelihood(params, size, s, jnp.zeros((1, 2), jnp.int32))[0].sum()
  )(states)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_bfloat16_is_close_to_float32():
  size = config(96, False)
  narrow = decoder.random_params(size, jax.random.key(0), jnp.bfloat16)
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
  states = jax.random.normal(jax.random.key(1), (2, 3, size.width)).astype(jnp.bfloat16)
  ids = jax.random.randint(jax.random.key(2), (2, 3), 0, 96)
  run = lambda params, states: jax.grad(
    lambda s: loss.target_log_likelihood(params, size, s, ids)[0].sum()
  )(states)
  gradient, gradient_narrow = run(wide, states.astype(jnp.float32)), run(narrow, states)
  assert gradient_narrow.dtype == jnp.bfloat16
  assert jnp.linalg.norm(gradient - gradient_narrow) < 0.02 * jnp.linalg.norm(gradient)
