"""Every method on a tiny random decoder: where gradients go, padding, decoding, recursion depth."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import encoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods import fine_tuning
from frozen_jax.methods.adapters import Adapters
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.id_pt import InputDependentPromptTuning
from frozen_jax.methods.lora import Lora
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.prefix_tuning import PrefixTuning, as_prefix
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.connector import ConnectorOptions
from frozen_jax.modules.prompt_generator import GeneratorOptions
from frozen_jax.text.padding import padded

CONFIG = DecoderConfig(
  vocab_size=97, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, tied=True
)
PARAMS = lm.random_params(CONFIG, jax.random.key(0))
PROMPT = 0.1 * jax.random.normal(jax.random.key(1), (5, CONFIG.width))
ENCODER = EncoderConfig(
  vocab_size=53, width=24, layers=2, heads=3, head_dim=8, mlp_width=40, context=40
)
ENCODER_PARAMS = encoder.random_params(ENCODER, jax.random.key(3))
P_PRIME = 0.1 * jax.random.normal(jax.random.key(4), (3, ENCODER.width))
ENCODER_TEXTS = [[3, 9, 40, 51], [7, 7, 2, 30, 8, 11], [50, 1]]
TEXTS = [[5, 17, 3, 44, 9, 60, 2, 31, 8], [7, 1, 90, 12], [33, 21, 8, 8, 70, 15]]


def batch(left: bool = False, spare: int = 0):
  """Each text's last two tokens are its targets."""
  width = max(map(len, TEXTS)) + spare
  tokens, mask = np.zeros((2, len(TEXTS), width), np.int32)
  positions = np.zeros((len(TEXTS), 3), np.int32)
  ids, real = np.zeros_like(positions), np.zeros_like(positions)
  for row, text in enumerate(TEXTS):
    start = width - len(text) if left else 0
    tokens[row, start : start + len(text)] = text
    mask[row, start : start + len(text)] = 1
    positions[row, :2] = start + len(text) - 3 + np.arange(2)
    ids[row, :2], real[row, :2] = text[-2:], 1
  return {
    "tokens": tokens,
    "mask": mask,
    "target_positions": positions,
    "target_ids": ids,
    "target_mask": real,
    **beside(len(TEXTS), spare),
  }


def beside(rows: int, spare: int = 0):
  """What a text encoder reads of each row, and which data set the row is of."""
  tokens, mask = padded(ENCODER_TEXTS[:rows], 6 + spare)
  return {"encoder_tokens": tokens, "encoder_mask": mask, "task": np.arange(rows, dtype=np.int32)}


def recursion(**options):
  given = {"initial_prompt": PROMPT} | options
  connector = ConnectorOptions(width=16, heads=2, zero_output=given.pop("zero_output", False))
  return NeuralRecursion(CONFIG, connector, embedding_rms=0.1, **given)


PREFIX = {name: jnp.stack([PROMPT[:, :16].reshape(5, 2, 8)] * 3) for name in "kv"}
GENERATOR = GeneratorOptions(5, width=16, heads=2, zero_output=False)
METHODS = {
  "id_pt": InputDependentPromptTuning(CONFIG, ENCODER, GENERATOR, 0.1, PROMPT, P_PRIME),
  "plain_id_pt": InputDependentPromptTuning(CONFIG, ENCODER, GENERATOR, 0.1, None, P_PRIME),
  "no_p_prime": InputDependentPromptTuning(CONFIG, ENCODER, GENERATOR, 0.1, PROMPT, None),
  "prompt_for_each_task": PromptTuning(CONFIG, PROMPT, tasks=2),
  "prefix_tuning": PrefixTuning(CONFIG, PREFIX),
  "lora": Lora(CONFIG, ("attn/q", "attn/o", "mlp/down"), rank=2, alpha=4.0),
  "adapters": Adapters(CONFIG, bottleneck=5),
  "fine_tuning": FineTuning(CONFIG, PARAMS),
  "prompt_tuning": PromptTuning(CONFIG, PROMPT),
  "zero_shot": PromptTuning(CONFIG, None),
  "recursion": recursion(),
  "plain_recursion": recursion(input_skip=False),
  "three_passes": recursion(passes=3),
  "both_prompts_trained": recursion(first_initial=PROMPT),
}


def frozen(method):
  has_first = isinstance(method, NeuralRecursion) and method.initial_prompt is not None
  fixed = {"first_prompt": {"vectors": PROMPT + 0.05}} if has_first else {}
  return {"lm": PARAMS, "fixed": fixed, "encoder": ENCODER_PARAMS}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, trained, one, key=None):
  return method.loss(trained, frozen(method), one, key)


@functools.partial(jax.jit, static_argnums=(0, 4))
def prefill(method, trained, tokens, mask, new):
  prompts = {"tokens": tokens, "mask": mask, **beside(len(tokens))}
  return method.prefill(trained, frozen(method), prompts, new, new)


def trained_tree(method):
  return jax.jit(method.init)(jax.random.key(2))


@pytest.fixture(params=METHODS)
def method(request):
  return METHODS[request.param]


def _behind_zero(path):
  """LoRA's a and the way down of an adapter, whose gradient is 0 until the other half moves."""
  return path.endswith("/a") or re.match("adapters/.*/down/", path)


def test_gradients_reach_every_trained_leaf(method):
  trained = trained_tree(method)
  grads = jax.jit(jax.grad(lambda t: method.loss(t, frozen(method), batch(), None)[0]))(trained)
  norms = {path: float(jnp.abs(leaf).max()) for path, leaf in paths.flatten(grads).items()}
  assert all(0 < norm < np.inf or _behind_zero(path) for path, norm in norms.items()), norms


def test_padding_changes_nothing(method):
  trained = trained_tree(method)
  tight, metrics = loss_of(method, trained, batch())
  assert metrics["targets"] == 6 and metrics["tokens"] == 19 and metrics["rows"] == 3
  for other in (batch(left=True), batch(spare=5), batch(left=True, spare=4)):
    np.testing.assert_allclose(loss_of(method, trained, other)[0], tight, rtol=2e-6)


def test_empty_rows_count_for_nothing(method):
  trained = trained_tree(method)
  padded = {name: np.concatenate([a, np.zeros_like(a[:1])]) for name, a in batch().items()}
  loss, metrics = loss_of(method, trained, padded)
  np.testing.assert_allclose(loss, loss_of(method, trained, batch())[0], rtol=2e-6)
  assert metrics["rows"] == 3


def test_decoding_token_by_token_equals_reading_at_once(method):
  trained = trained_tree(method)
  tokens = jnp.asarray([TEXTS[0], TEXTS[0][::-1]])
  ones = jnp.ones_like(tokens)
  step = jax.jit(method.decode)
  logits, state = prefill(method, trained, tokens[:, :4], ones[:, :4], 5)
  for index in range(4, tokens.shape[1]):
    logits, state = step(trained, frozen(method), tokens[:, index], state)
    masked = ones.at[:, index + 1 :].set(0)
    whole, _ = prefill(method, trained, tokens, masked, 0)
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_prefill_agrees_with_the_loss(method):
  """The next-token distribution of `prefill` gives the likelihood that `loss` reports."""
  trained = trained_tree(method)
  tokens = jnp.asarray([TEXTS[0]])
  logits, _ = prefill(method, trained, tokens[:, :-1], jnp.ones((1, 8), jnp.int32), 1)
  one = {
    "tokens": tokens,
    "mask": jnp.ones_like(tokens),
    "target_positions": jnp.asarray([[7]]),
    "target_ids": tokens[:, -1:],
    "target_mask": jnp.ones((1, 1), jnp.int32),
    **beside(1),
  }
  loss, _ = loss_of(method, trained, one)
  np.testing.assert_allclose(loss, -jax.nn.log_softmax(logits)[0, TEXTS[0][-1]], rtol=1e-5)


def test_with_zero_output_the_recursion_starts_as_the_single_pass():
  twice = recursion(zero_output=True)
  once = PromptTuning(CONFIG, PROMPT)
  trained = trained_tree(twice)
  a, _ = loss_of(twice, trained, batch())
  b, _ = loss_of(once, trained_tree(once), batch())
  assert a == b


def test_the_recursion_is_causal():
  """A later token changes no earlier prediction."""
  twice = recursion(input_skip=False)
  trained = trained_tree(twice)
  one = batch()
  changed = {**one, "tokens": one["tokens"].copy()}
  changed["tokens"][0, -1] = 50  # behind the positions that predict the two targets of row 0
  assert loss_of(twice, trained, one)[0] == (loss_of(twice, trained, changed)[0])


def test_dropout_needs_a_key_and_is_reproducible():
  connector = ConnectorOptions(width=16, heads=2, dropout=0.5, zero_output=False)
  twice = NeuralRecursion(CONFIG, connector, embedding_rms=0.1, initial_prompt=PROMPT)
  trained = trained_tree(twice)
  loss = lambda key: float(loss_of(twice, trained, batch(), key)[0])
  assert loss(None) == loss(None)
  assert loss(jax.random.key(1)) == loss(jax.random.key(1))
  assert loss(jax.random.key(1)) != loss(jax.random.key(2))


def test_the_first_pass_has_no_backward_pass():
  """Only a trained first prompt brings the backward pass of pass one."""

  def flops(method, differentiate):
    function = lambda t: method.loss(t, frozen(method), batch(spare=100), None)[0]
    function = jax.grad(function) if differentiate else function
    compiled = jax.jit(function).lower(trained_tree(method)).compile()
    return compiled.cost_analysis()["flops"]

  once, twice, both = (METHODS[n] for n in ("prompt_tuning", "recursion", "both_prompts_trained"))
  one_forward = flops(twice, False) - flops(once, False)
  assert flops(both, True) - flops(twice, True) > 0.5 * one_forward


@pytest.mark.parametrize("name", ["lora", "adapters", "fine_tuning"])
def test_training_starts_from_the_lm_as_it_comes(name):
  as_it_comes = loss_of(METHODS["zero_shot"], {}, batch())[0]
  start = loss_of(METHODS[name], trained_tree(METHODS[name]), batch())[0]
  np.testing.assert_allclose(start, as_it_comes, rtol=1e-6)


def test_a_prefix_starts_as_the_text_that_it_is_taken_from():
  """Keys and values of a text before another are what that other sees of it."""
  _, cache = lm.prefill(PARAMS, CONFIG, PROMPT[None], jnp.ones((1, 5), jnp.int32), 0)
  prefix = PrefixTuning(CONFIG, as_prefix(cache))
  prompt = METHODS["prompt_tuning"]
  losses = [loss_of(method, trained_tree(method), batch())[0] for method in (prefix, prompt)]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  assert prefix.taken(trained_tree(prefix), frozen(prefix)) == 5


def test_fine_tuning_refuses_what_would_get_no_gradient():
  """The products of experts, and those with quantised matrices, are made for frozen weights."""
  routed = dataclasses.replace(CONFIG, experts=4, chosen=2)
  options = {"model": {"quantize": "", "remat": False}}
  base = types.SimpleNamespace(config=routed, params={}, tokenizer=None)
  with pytest.raises(UserError, match="mixture of experts"):
    fine_tuning.build(base, options)
  with pytest.raises(UserError, match="model.quantize"):
    fine_tuning.build(base, {"model": {"quantize": "int8", "remat": False}})
