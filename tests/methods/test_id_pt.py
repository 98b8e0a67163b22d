"""ID-PT's own: where it starts, what its prompt depends on, and the encoder's states cached."""

import dataclasses

import jax
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods.id_pt import GeneratorSettings, InputDependentPromptTuning
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.prompt_generator import GeneratorConfig
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.training.optimizer import make_optimizer
from frozen_jax.training.settings import TrainSettings
from frozen_jax.training.state import create_state
from frozen_jax.training.step import make_train_step
from tests.methods.tiny import CONFIG, ENCODER, PARAMS, base

pytestmark = pytest.mark.program

T5 = dataclasses.replace(
  ENCODER,
  types=0,
  embed_norm=False,
  norm="rms",
  norm_bias=False,
  norm_first=True,
  positions="buckets",
  buckets=8,
  bucket_distance=16,
  scaled=False,
  attn_bias=False,
  mlp_bias=False,
)
ENCODERS = {"bert": ENCODER, "t5": T5}
SETTINGS = PromptSettings(length=4, text="")


def parts(kind, zero_output, p_prime=3):
  """A method, and its frozen tree."""
  sizes = ENCODERS[kind]
  generator = GeneratorConfig(4, width=16, heads=2, layers=2, zero_output=zero_output)
  method = InputDependentPromptTuning(
    CONFIG, sizes, generator, 0.1, SETTINGS, p_prime_length=p_prime
  )
  frozen = {
    "lm": PARAMS,
    "encoder": encoder.random_params(sizes, jax.random.key(3)),
    "frozen_inputs": {},
  }
  return method, frozen


def batch():
  ones = np.ones((2, 5), np.int32)
  encoder_mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
  return {
    "tokens": np.array([[4, 8, 15, 16, 23], [42, 4, 8, 15, 16]], np.int32),
    "mask": ones,
    "target_positions": 3 * ones[:, :1],
    "target_ids": np.array([[23], [16]], np.int32),
    "target_mask": ones[:, :1],
    "encoder_tokens": np.array([[5, 9, 50, 0], [7, 1, 2, 30]], np.int32),
    "encoder_mask": encoder_mask,
  }


@pytest.fixture(params=ENCODERS)
def kind(request):
  return request.param


def test_it_starts_as_prompt_tuning(kind):
  method, frozen = parts(kind, zero_output=True)
  trained = method.init(base(), jax.random.key(5))
  plain = PromptTuning(CONFIG, SETTINGS)
  ours = jax.jit(method.loss)(trained, frozen, batch(), None)[0]
  theirs = jax.jit(plain.loss)(plain.init(base(), jax.random.key(5)), frozen, batch(), None)[0]
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # prompts of rows are computed row by row


def test_a_step_moves_what_is_trained_and_nothing_else(kind):
  method, frozen = parts(kind, zero_output=False)
  before = jax.tree.map(np.array, frozen)
  mesh = make_mesh(data=1, fsdp=1, tensor=1)
  optimizer = make_optimizer(
    TrainSettings(steps=5, warmup_steps=0),
    dict.fromkeys(("generator", "prompt", "encoder_prompt"), 1e-2),
  )
  trained = method.init(base(), jax.random.key(5))
  start = {path: np.array(leaf) for path, leaf in paths.flatten(trained).items()}
  state = create_state(trained, optimizer, jax.random.key(6), mesh)
  state, _ = make_train_step(method, optimizer)(state, frozen, batch())
  moved = {p: np.any(np.asarray(a) != start[p]) for p, a in paths.flatten(state.trainable).items()}
  assert all(moved.values()), moved
  assert {p.split("/")[0] for p in moved} == {"generator", "prompt", "encoder_prompt"}
  for path, leaf in paths.flatten(frozen).items():
    np.testing.assert_array_equal(leaf, paths.flatten(before)[path])


def test_the_prompt_depends_on_the_text_alone(kind):
  method, frozen = parts(kind, zero_output=False)
  trained, one = method.init(base(), jax.random.key(5)), batch()
  written = jax.jit(method.prompt)(trained, frozen, one)
  assert written.shape == (2, 4, CONFIG.width) and np.abs(written[0] - written[1]).max() > 1e-3
  other = {**one, "encoder_tokens": one["encoder_tokens"].copy()}
  other["encoder_tokens"][0, 1] = 33  # of the text
  other["encoder_tokens"][0, 3] = 44  # of the padding
  again = jax.jit(method.prompt)(trained, frozen, other)
  assert np.abs(written[0] - again[0]).max() > 1e-4
  np.testing.assert_array_equal(written[1], again[1])
  other["encoder_tokens"][0, 1] = one["encoder_tokens"][0, 1]
  np.testing.assert_allclose(jax.jit(method.prompt)(trained, frozen, other), written, atol=1e-6)


def test_cached_states_give_the_same_loss(kind):
  method, frozen = parts(kind, zero_output=False, p_prime=0)
  trained, one = method.init(base(), jax.random.key(5)), batch()
  x = encoder.embed(frozen["encoder"], method.encoder, one["encoder_tokens"])
  states = encoder.hidden(frozen["encoder"], method.encoder, x, one["encoder_mask"])
  cached = {name: value for name, value in one.items() if name != "encoder_tokens"}
  cached |= {"encoder_states": states, "encoder_cached": np.array([1, 0], np.int32)}
  loss, metrics = jax.jit(method.loss)(trained, frozen, cached, None)
  np.testing.assert_allclose(loss, jax.jit(method.loss)(trained, frozen, one, None)[0], rtol=1e-6)
  assert metrics["encoder_cached"] == 1


@pytest.mark.parametrize("p_prime", [0, 3])
def test_padding_beyond_the_table_of_positions(p_prime):
  method, frozen = parts("bert", zero_output=False, p_prime=p_prime)
  trained, one = method.init(base(), jax.random.key(5)), batch()
  wide = {**one}
  for name in ("encoder_tokens", "encoder_mask"):
    wide[name] = np.pad(one[name], ((0, 0), (0, ENCODER.context)))
  losses = [jax.jit(method.loss)(trained, frozen, each, None)[0] for each in (one, wide)]
  np.testing.assert_allclose(*losses, rtol=1e-6)


def build(generator, lm):
  settings = {"p_prime_length": 2, "width": 16, "heads": 2} | generator
  sections = {"generator": GeneratorSettings(**settings), "prompt": SETTINGS}
  return InputDependentPromptTuning.build(lm, sections)


def test_building():
  trained = build({}, base()).init(base(), jax.random.key(0))
  assert set(trained) == {"generator", "prompt", "encoder_prompt"}
  assert not np.any(trained["generator"]["output_proj"]["kernel"])
  plain = build({"constant": False, "p_prime_length": 0}, base()).init(base(), jax.random.key(0))
  assert set(plain) == {"generator"} and np.any(plain["generator"]["output_proj"]["kernel"])


@pytest.mark.parametrize(
  "generator, lm, message",
  [
    ({}, base(encoder=None), "needs a text encoder"),
    ({"p_prime_length": -1}, base(), "p_prime_length is -1"),
    ({"heads": 3}, base(), "generator.heads=3 does not divide"),
  ],
)
def test_what_does_not_fit(generator, lm, message):
  with pytest.raises(UserError, match=message):
    build(generator, lm)
