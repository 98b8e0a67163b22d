"""The Connector against a plain NumPy reference, and its scale, start and cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from frozen_jax.modules.connector import Connector, ConnectorConfig

pytestmark = pytest.mark.program

WIDTH = 24
SIZES = ConnectorConfig(width=16, layers=2, heads=2, zero_output=False)


@pytest.fixture(scope="module")
def connector():
  return Connector(WIDTH, SIZES, output_scale=0.3, rngs=nnx.Rngs(0))


def inputs(rows=2, length=7, size=3.0):
  hidden = size * jax.random.normal(jax.random.key(1), (rows, length, WIDTH))
  return hidden, jnp.ones((rows, length), jnp.int32)


def reference(connector, hidden, mask):
  """The same function in NumPy, one row and one position at a time."""
  tree = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(connector, nnx.Param)))

  def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  out = np.zeros(hidden.shape)
  for row in range(hidden.shape[0]):
    x = norm(np.asarray(hidden[row], np.float64), 1.0)
    x = x @ tree["input_proj"]["kernel"] + tree["input_proj"]["bias"]
    for index in range(SIZES.layers):
      layer = tree[f"layer_{index}"]
      normed = norm(x, layer["attention_norm"]["scale"])
      q, k, v = np.split(normed @ layer["attention"]["qkv"]["kernel"], 3, -1)
      mixed = np.zeros_like(q)
      for head in range(SIZES.heads):
        part = slice(head * 8, head * 8 + 8)
        for t in range(len(x)):
          seen = [s for s in range(t + 1) if mask[row, s]]
          if not seen:
            continue
          scores = np.array([q[t, part] @ k[s, part] / np.sqrt(8) for s in seen])
          weights = np.exp(scores - scores.max())
          weights /= weights.sum()
          mixed[t, part] = sum(w * v[s, part] for w, s in zip(weights, seen, strict=True))
      x = x + mixed @ layer["attention"]["out"]["kernel"]
      normed = norm(x, layer["mlp_norm"]["scale"])
      inner = gelu(normed @ layer["up"]["kernel"] + layer["up"]["bias"])
      x = x + inner @ layer["down"]["kernel"] + layer["down"]["bias"]
    out[row] = 0.3 * (norm(x, tree["final_norm"]["scale"]) @ tree["output_proj"]["kernel"])
  return out


@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_agrees_with_the_reference_at_real_positions(connector, padding):
  hidden, mask = inputs()
  if padding == "left":
    mask = mask.at[0, :3].set(0)
  if padding == "right":
    mask = mask.at[1, 4:].set(0)
  output, _ = nnx.jit(lambda c, h, m: c(h, m))(connector, hidden, mask)
  real = np.asarray(mask, bool)
  expected = reference(connector, hidden, np.asarray(mask))
  np.testing.assert_allclose(np.asarray(output)[real], expected[real], atol=2e-6)


def test_step_by_step_equals_at_once(connector):
  hidden, mask = inputs(length=9)
  whole, _ = connector(hidden, mask)
  output, cache = connector(hidden[:, :5], mask[:, :5], free_slots=4)
  parts = [output]
  for index in range(5, 9):
    output, cache = connector.step(hidden[:, index : index + 1], cache)
    parts.append(output)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-6)


def test_continuations_equal_each_on_its_own(connector):
  """Two continuations after one text, of 3 and 2 positions, the second padded."""
  hidden, mask = inputs(length=11)
  mask = mask.at[0, :2].set(0)  # of the text, on the left
  real = jnp.array([1, 1, 1, 1, 1, 0], bool)
  attention_mask = jnp.kron(jnp.eye(2), jnp.tri(3)).astype(bool) & real
  _, cache = connector(hidden[:, :5], mask[:, :5])
  result = connector.hidden_after_cache(
    hidden[:, 5:], cache, jnp.broadcast_to(attention_mask, (2, 6, 6))
  )
  for own in (np.arange(5, 8), np.arange(8, 10)):
    place = np.concatenate([np.arange(5), own])
    alone, _ = connector(hidden[:, place], mask[:, place])
    np.testing.assert_allclose(result[:, own - 5], alone[:, 5:], atol=1e-6)


def test_the_scale_of_its_input_does_not_matter_and_its_output_is_scaled(connector):
  small, _ = connector(*inputs(size=1.0))
  large, _ = connector(*inputs(size=50.0))
  np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-4)
  assert 0.1 < float(jnp.sqrt(jnp.mean(jnp.square(small)))) / 0.3 < 3


def test_with_zero_output_it_starts_as_zero():
  config = ConnectorConfig(width=16, layers=1, heads=2)
  output, _ = Connector(WIDTH, config, 0.3, nnx.Rngs(0))(*inputs())
  assert not output.any()


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="not divisible"):
    ConnectorConfig(width=10, heads=4)
