"""Continuation scoring after a prompt that is read once, against each choice by the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder as lm
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.text.padding import pad_sequences
from tests.methods.test_methods import DECODED, METHODS, frozen, other_inputs, trained_tree
from tests.methods.tiny import CONFIG, PARAMS

pytestmark = pytest.mark.program

PROMPTS = [[5, 17, 3, 44, 9, 60, 2], [7, 1, 90], [33, 21, 8, 8, 70]]
CHOICES = [
  [[31, 8, 2], [4], [31, 8, 9, 11]],
  [[12, 80], [4]],
  [[15], [15, 15, 15], [90, 3]],
]


def perturbed(method):
  """A trained tree of which every part matters."""
  tree = trained_tree(method)
  leaves, shape = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(7), max(len(leaves), 1))
  noise = lambda a, key: a + 0.1 * jax.random.normal(key, a.shape)
  return jax.tree.unflatten(shape, [noise(a, key) for a, key in zip(leaves, keys, strict=False)])


def arrays(left, size, spare, count, length):
  """Prompts [B, T] and choices [B, C, M] with masks."""
  width = max(map(len, PROMPTS)) + spare
  tokens, mask = pad_sequences(PROMPTS, width, size, left=left)
  choices, choice_mask = np.zeros((2, size, count, length), np.int32)
  for row, options in enumerate(CHOICES):
    ids, real = pad_sequences(options, length, count)
    choices[row], choice_mask[row] = ids, real
  others = {name: np.zeros((size, *a.shape[1:]), np.int32) for name, a in other_inputs(3).items()}
  for name, a in other_inputs(3).items():
    others[name][:3] = a
  return {"tokens": tokens, "mask": mask, **others}, choices, choice_mask


@functools.partial(jax.jit, static_argnums=0)
def log_likelihoods(method, trained, prompts, choices, choice_mask):
  return method.log_likelihoods(trained, frozen(method), prompts, choices, choice_mask)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, trained, batch):
  return method.loss(trained, frozen(method), batch, None)[0]


def one_by_one(method, trained):
  """For each row the summed log-likelihood of each choice: prompt and choice as one text."""
  result = []
  for row, (prompt, options) in enumerate(zip(PROMPTS, CHOICES, strict=True)):
    result.append([])
    others = {name: a[row : row + 1] for name, a in other_inputs(3).items()}
    for choice in options:
      tokens, mask = pad_sequences([prompt + choice], 12)
      positions = len(prompt) - 1 + np.arange(len(choice))
      targets = {
        "target_positions": pad_sequences([positions], 4)[0],
        "target_ids": pad_sequences([choice], 4)[0],
        "target_mask": pad_sequences([choice], 4)[1],
      }
      loss = loss_of(method, trained, {"tokens": tokens, "mask": mask} | targets | others)
      result[-1].append(-float(loss) * len(choice))
  return result


def assert_equal_each_choice(name, size, spare, count, length):
  method = METHODS[name]
  trained = perturbed(method)
  expected_rows = one_by_one(method, trained)
  for left in (True, False):
    result = log_likelihoods(method, trained, *arrays(left, size, spare, count, length))
    assert result.shape == (size, count) and result.dtype == np.float32
    for row, expected in enumerate(expected_rows):
      np.testing.assert_allclose(result[row, : len(expected)], expected, atol=1e-4)
      assert (result[row, len(expected) :] == -np.inf).all()
    assert (result[len(expected_rows) :] == -np.inf).all()


@pytest.mark.parametrize("name", DECODED)
def test_equal_each_choice_by_the_loss(name):
  """With an empty row, empty choices, and padding everywhere."""
  assert_equal_each_choice(name, size=4, spare=9, count=5, length=7)


@pytest.mark.parametrize("name", ["zero_shot", "recursion"])
def test_without_room_to_spare(name):
  assert_equal_each_choice(name, size=3, spare=0, count=3, length=4)


@pytest.mark.parametrize("name", ["zero_shot", "recursion"])
def test_choices_of_one_token_are_scored_by_the_next_token(name):
  method = METHODS[name]
  trained = perturbed(method)
  prompts, _, _ = arrays(True, 3, 0, 3, 4)
  choices = np.array([[[3], [4]], [[5], [6]], [[96], [0]]], np.int32)
  result = log_likelihoods(method, trained, prompts, choices, np.ones_like(choices))
  read = jax.jit(method.prefill, static_argnums=4)
  logits, _ = read(trained, frozen(method), prompts, 1, 1)
  expected_rows = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), choices[:, :, 0], axis=1
  )
  np.testing.assert_allclose(result, expected_rows, atol=1e-5)


def test_the_prompt_is_read_once_and_no_other_logits_are_made():
  """Twice as many choices cost their own tokens, and neither the prompt nor its cache again."""
  method, vocab = ZeroShot(CONFIG), CONFIG.vocab_size
  shape = jax.ShapeDtypeStruct

  def compiled(count, length):
    prompts = {name: shape((1, 512), jnp.int32) for name in ("tokens", "mask")}
    choices = shape((1, count, length), jnp.int32)
    score = lambda *inputs: method.log_likelihoods({}, {"lm": PARAMS, "frozen_inputs": {}}, *inputs)
    return jax.jit(score).lower(prompts, choices, choices).compile()

  read = jax.jit(lambda x: lm.hidden(PARAMS, CONFIG, x)).lower(
    shape((1, 512, CONFIG.width), jnp.float32)
  )
  once = read.compile().cost_analysis()["flops"]
  few, many = (compiled(count, 2).cost_analysis()["flops"] for count in (2, 4))
  assert many - few < 0.05 * once
  assert f"f32[1,512,{vocab}]" not in compiled(2, 2).as_text()
