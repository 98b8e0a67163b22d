"""The encoder against transformers on tiny random models: states and gradients."""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from tests.backbones.encoder_cases import KINDS, LENGTH, core, inputs, run

pytestmark = pytest.mark.program


@functools.partial(jax.jit, static_argnums=1)
def states_and_gradient(params, config, x, mask, types, weight):
  def total(x):
    states = encoder.hidden(params, config, x, mask, types)
    return (states * weight).sum(), states

  return jax.grad(total, has_aux=True)(x)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", KINDS)
def test_states_and_input_gradient_equal_transformers(encoder_pair, name, padding):
  model, loaded = encoder_pair(name)
  config = loaded.config
  tokens, mask, types = inputs(config, padding)
  x = np.asarray(encoder.embed(loaded.params, config, tokens))
  weight = np.random.default_rng(1).normal(size=(3, LENGTH, config.width)).astype(np.float32)
  weight *= mask[..., None]

  theirs_x = torch.tensor(x, requires_grad=True)
  theirs = run(model, config, theirs_x, mask, types).last_hidden_state
  (theirs * torch.tensor(weight)).sum().backward()
  gradient, ours = states_and_gradient(loaded.params, config, x, mask, types, weight)

  real = mask > 0
  assert np.ptp(ours[real]) > 2 and np.ptp(gradient[real]) > 2
  np.testing.assert_allclose(ours[real], theirs.detach().numpy()[real], atol=2e-5)
  np.testing.assert_allclose(gradient[real], theirs_x.grad.numpy()[real], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(gradient[~real], 0)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "t5", "modernbert"])
def test_right_padded_text_is_as_transformers_has_it_on_its_own(encoder_pair, name):
  """Only token ids and a mask are given, no positions or types."""
  model, loaded = encoder_pair(name)
  tokens, mask, _ = inputs(loaded.config, "right")
  if name == "roberta":  # whose positions depend on which ids are padding
    tokens = np.where(mask > 0, tokens, model.config.pad_token_id)
  with torch.no_grad():
    theirs = core(model)(torch.tensor(tokens), attention_mask=torch.tensor(mask))
  x = encoder.embed(loaded.params, loaded.config, tokens)
  ours = encoder.hidden(loaded.params, loaded.config, x, mask)
  real = mask > 0
  np.testing.assert_allclose(ours[real], theirs.last_hidden_state.numpy()[real], atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "modernbert"])
def test_padding_changes_nothing(encoder_pair, name):
  _, loaded = encoder_pair(name)
  run = jax.jit(encoder.hidden, static_argnums=1)
  tokens, _, _ = inputs(loaded.config, "none")
  x = encoder.embed(loaded.params, loaded.config, tokens)
  expected = run(loaded.params, loaded.config, x[:, 6:])
  for rows in (slice(6, None), slice(None, -6)):  # padding on the left, on the right
    mask = np.zeros((3, LENGTH), np.int32)
    mask[:, rows] = 1
    padded_x = np.full(x.shape, 7.0, np.float32)
    padded_x[:, rows] = x[:, 6:]
    padded = run(loaded.params, loaded.config, padded_x, mask)
    np.testing.assert_allclose(padded[:, rows], expected, atol=1e-5)
    assert np.isfinite(padded).all()
  empty = run(loaded.params, loaded.config, x, np.zeros((3, LENGTH), np.int32))
  assert np.isfinite(empty).all()


@pytest.mark.parametrize(
  "buckets, max_distance", [(32, 128), (8, 12), (6, 5), (16, 64), (64, 1000)]
)
def test_buckets_are_those_of_transformers(buckets, max_distance):
  distance = np.arange(-1500, 1500)
  theirs = T5Attention._relative_position_bucket(
    torch.tensor(distance), True, buckets, max_distance
  )
  ours = encoder.relative_position_bucket(distance, buckets, max_distance)
  np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_text_longer_than_the_table_of_positions_is_refused(encoder_pair):
  _, loaded = encoder_pair("roberta")  # a table of 32 rows, the first 2 of which are never read
  run = lambda length: encoder.hidden(loaded.params, loaded.config, np.zeros((1, length, 24)))
  assert run(30).shape == (1, 30, 24)
  with pytest.raises(UserError, match="31 positions.*has 30"):
    run(31)


@pytest.mark.parametrize("name", KINDS)
def test_the_param_tree_matches_its_axes(encoder_pair, name):
  import re

  _, loaded = encoder_pair(name)
  shapes = paths.flatten(encoder.param_shapes(loaded.config))
  params = paths.flatten(encoder.random_params(loaded.config, jax.random.key(0)))
  assert {p: s.shape for p, s in shapes.items()} == {p: a.shape for p, a in params.items()}
  for path, shape in shapes.items():
    hits = [axes for rule, axes in encoder.PARAM_AXES.items() if re.fullmatch(rule, path)]
    assert len(hits) == 1 and len(hits[0]) == len(shape.shape), path


@pytest.mark.parametrize(
  "change",
  [
    {"layers": 0},
    {"head_dim": 7},
    {"local": (True,)},
    {"local": (True, False)},
    {"positions": "alibi"},
    {"positions": "buckets", "buckets": 7},
    {"positions": "buckets", "bucket_distance": 8},
    {"skip_first_norm": True},
    {"pooling": "last"},
  ],
)
def test_sizes_that_do_not_fit_are_refused(change):
  with pytest.raises(ValueError):
    EncoderConfig(**{**dict.fromkeys(("vocab_size", "width", "mlp_width"), 8), **SIZES, **change})


SIZES = {"layers": 2, "heads": 2, "head_dim": 4}
