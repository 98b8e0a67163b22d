"""Every method on a tiny random decoder: where gradients go, padding, decoding, recursion depth."""

import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import prompts, quantized
from frozen_jax.core import flop_count, paths
from frozen_jax.core.errors import UserError
from frozen_jax.methods.adapters import Adapters
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.id_pt import (
  InputDependentPromptTuning,
  LateInputDependentPromptTuning,
)
from frozen_jax.methods.layer_passes import LayerPasses
from frozen_jax.methods.lora import Lora, LoraSettings
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.prefix_tuning import PrefixTuning
from frozen_jax.methods.prompt_tuning import LatePromptTuning, PromptTuning
from frozen_jax.methods.recirculation import Looped, Mix, Recirculation
from frozen_jax.methods.serial_passes import SerialPasses
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules.connector import ConnectorConfig
from frozen_jax.modules.prompt_generator import GeneratorConfig
from frozen_jax.text.padding import pad_sequences
from tests.methods.tiny import (
  CONFIG,
  ENCODER,
  ENCODER_PARAMS,
  PARAMS,
  RANDOM_START,
  SETTINGS,
  base,
  recursion,
)

pytestmark = pytest.mark.program

PROMPT = 0.1 * jax.random.normal(jax.random.key(1), (5, CONFIG.width))
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
    **other_inputs(len(TEXTS), spare),
  }


def other_inputs(rows: int, spare: int = 0):
  """The text encoder's input of each row, and which data set the row is from."""
  tokens, mask = pad_sequences(ENCODER_TEXTS[:rows], 6 + spare)
  return {"encoder_tokens": tokens, "encoder_mask": mask, "task": np.arange(rows, dtype=np.int32)}


GENERATOR = GeneratorConfig(5, width=16, heads=2, zero_output=False)
ID_PT = (CONFIG, ENCODER, GENERATOR, 0.1, RANDOM_START)
METHODS = {
  "id_pt": InputDependentPromptTuning(*ID_PT, p_prime_length=3),
  "plain_id_pt": InputDependentPromptTuning(*ID_PT, constant=False),
  "prompt_for_each_task": PromptTuning(CONFIG, RANDOM_START, num_tasks=2),
  "prefix_tuning": PrefixTuning(CONFIG, SETTINGS),
  "lora": Lora(CONFIG, LoraSettings(2, 4.0, ("attn/q", "attn/o", "mlp/down"))),
  "adapters": Adapters(CONFIG, bottleneck=5),
  "fine_tuning": FineTuning(CONFIG),
  "prompt_tuning": PromptTuning(CONFIG, RANDOM_START),
  "zero_shot": ZeroShot(CONFIG),
  "recursion": recursion(),
  "three_passes": recursion(passes=3, input_skip=False),
  "both_prompts_trained": recursion(first_prompt="trained"),
  "within_the_stack": recursion(read=2, write=1, passes=3, prompt_unit=5.0),
  "late_prompt_alone": recursion(kind="none", write=1, passes=1, first_prompt="none"),
  "control_of_one_pass": recursion(write=1, passes=1),
  "late_prompt_tuning": LatePromptTuning(CONFIG, RANDOM_START, prompt_layer=1, prompt_unit=5.0),
  "late_id_pt": LateInputDependentPromptTuning(
    CONFIG, None, *ID_PT[2:], prompt_layer=2, prompt_unit=5.0
  ),
  "late_id_pt_with_encoder": LateInputDependentPromptTuning(*ID_PT, prompt_layer=1),
  "recirculation": Recirculation(LayerPasses(CONFIG, 1, 2), Mix(0.3, matched=True)),
  "serial_recirculation": Recirculation(SerialPasses(CONFIG, 1, 2), Mix(0.3, matched=True)),
  "serial_of_all_layers": Recirculation(SerialPasses(CONFIG, 0), Mix(0.3, matched=True)),
  "looped": Looped(LayerPasses(CONFIG, 1, 2, 3, normed=False), Mix(0.3, matched=False)),
  "looped_to_the_end": Looped(LayerPasses(CONFIG, 1, normed=False), Mix(0.3, matched=False)),
  "linear": recursion(kind="linear", read=2, write=1),
  "concat": recursion(kind="concat", read=2, write=1),
  "mix": recursion(kind="mix", write=1),
  "tokens": recursion(kind="tokens", read=2, write=1),
}
# Decoded as others are: each position by itself, as `mix` and `tokens`; after such a prompt as
# `id_pt` and `recursion`; in three passes, as `within_the_stack`.
AS_OTHERS = ("linear", "concat", "plain_id_pt", "both_prompts_trained", "three_passes")
DECODED = [name for name in METHODS if name not in AS_OTHERS]
NEW = 5  # tokens that there is room for after a prefill


def frozen(method):
  has_first = getattr(method, "first_prompt", "none") == "frozen"
  frozen_inputs = {"first_prompt": {"vectors": PROMPT}} if has_first else {}
  return {"lm": PARAMS, "frozen_inputs": frozen_inputs, "encoder": ENCODER_PARAMS}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(method, trained, one, key=None):
  return method.loss(trained, frozen(method), one, key)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(method, trained, one):
  """(loss, metrics), gradients; the tests of a method share it for batches of one shape."""
  loss = lambda trained: method.loss(trained, frozen(method), one, None)
  return jax.value_and_grad(loss, has_aux=True)(trained)


@functools.partial(jax.jit, static_argnums=0)
def prefill(method, trained, tokens, mask):
  prompts = {"tokens": tokens, "mask": mask, **other_inputs(len(tokens))}
  return method.prefill(trained, frozen(method), prompts, NEW, NEW)


def trained_tree(method):
  return _trained_tree(method, getattr(method, "settings", None))


@functools.cache
def _trained_tree(method, settings):  # the settings of a start are not compared with a method
  tree = jax.jit(lambda key: method.init(base(), key))(jax.random.key(2))
  if not isinstance(method, NeuralRecursion):
    return tree
  noise = lambda leaf: 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
  return jax.tree.map(lambda leaf: leaf if leaf.any() else noise(leaf), tree)


def with_zeros(tree):
  return jax.tree.map(jnp.zeros_like, tree)


@pytest.fixture(params=METHODS)
def method(request):
  return METHODS[request.param]


def _before_zeros(path):
  """LoRA's a and an adapter's down projection: their gradient is 0 until the other half moves."""
  return path.endswith("/a") or re.match("adapters/.*/down/", path)


def test_gradients_reach_every_trained_leaf(method):
  trained = trained_tree(method)
  _, grads = loss_and_gradients(method, trained, batch())
  norms = {path: float(jnp.abs(leaf).max()) for path, leaf in paths.flatten(grads).items()}
  assert norms or not method.learning_rates
  assert all(0 < norm < np.inf or _before_zeros(path) for path, norm in norms.items()), norms


def with_empty_row(one):
  return {name: np.concatenate([a, np.zeros_like(a[:1])]) for name, a in one.items()}


def test_neither_padding_nor_empty_rows_count(method):
  trained = trained_tree(method)
  (tight, _), _ = loss_and_gradients(method, trained, batch())
  found = [loss_and_gradients(method, trained, batch(left=left))[0] for left in (False, True)]
  for left in (False, True):
    found.append(loss_of(method, trained, with_empty_row(batch(left=left, spare=5))))
  for loss, metrics in found:
    np.testing.assert_allclose(loss, tight, rtol=2e-6)
    assert metrics["targets"] == 6 and metrics["tokens"] == 19 and metrics["rows"] == 3


@pytest.mark.parametrize(
  "method",
  [
    *("prompt_tuning", "prompt_for_each_task", "id_pt", "prefix_tuning", "lora", "fine_tuning"),
    *("recursion", "within_the_stack", "late_id_pt", "serial_recirculation"),
  ],
  indirect=True,
)
def test_padding_may_be_left_out(method):
  trained, one = trained_tree(method), batch()
  real = {
    "real_positions": np.append(np.flatnonzero(one["mask"]), [27, 27]).astype(np.int32),
    "real_targets": np.append(np.flatnonzero(one["target_mask"]), [99]).astype(np.int32),
  }
  (loss, metrics), grads = loss_and_gradients(method, trained, one | real)
  (expected, expected_metrics), expected_grads = loss_and_gradients(method, trained, one)
  np.testing.assert_allclose(loss, expected, rtol=2e-6)
  jax.tree.map(
    lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-5), metrics, expected_metrics
  )
  for path, leaf in paths.flatten(expected_grads).items():
    scale = float(jnp.abs(leaf).max())
    np.testing.assert_allclose(paths.flatten(grads)[path], leaf, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("method", DECODED, indirect=True)
def test_decoding_token_by_token_equals_reading_at_once(method):
  trained = trained_tree(method)
  if isinstance(method, LateInputDependentPromptTuning):  # of a longer text it makes another prompt
    constant = with_zeros(trained["generator"]["output_proj"])
    trained = {**trained, "generator": {**trained["generator"], "output_proj": constant}}
  tokens = np.array([TEXTS[0], TEXTS[0][::-1], TEXTS[0][4:] + TEXTS[0][:4]], np.int32)
  step = jax.jit(method.decode)
  first, first_mask = pad_sequences(tokens[:, :4].tolist(), 9, left=True)
  logits, state = prefill(method, trained, first, first_mask)
  for length in range(4, 10):
    mask = np.zeros_like(tokens)
    mask[:, :length] = 1
    whole, _ = prefill(method, trained, tokens, mask)
    np.testing.assert_allclose(logits, whole, atol=1e-4)
    if length < 9:
      logits, state = step(trained, frozen(method), tokens[:, length], state)


def test_prefill_agrees_with_the_loss(method):
  """The next-token distributions of `prefill` give the likelihood that `loss` reports."""
  trained, one = trained_tree(method), batch()
  lengths, rows = one["mask"].sum(axis=1), np.arange(len(TEXTS))
  # Of a generator that reads the question, the prompt of a longer text is another one.
  targets = 1 if isinstance(method, LateInputDependentPromptTuning) else 2
  one["target_mask"][:, targets:] = 0
  expected = 0.0
  for target in range(targets):
    mask = np.arange(9) < (lengths - 2 + target)[:, None]  # the text before that target
    logits, _ = prefill(method, trained, one["tokens"], mask.astype(np.int32))
    expected -= np.asarray(jax.nn.log_softmax(logits))[rows, one["target_ids"][:, target]].sum()
  (loss, _), _ = loss_and_gradients(method, trained, one)
  np.testing.assert_allclose(loss, expected / (3 * targets), rtol=1e-5)


def test_with_zero_output_the_recursion_starts_as_the_single_pass():
  twice = recursion(zero_output=True)
  once = METHODS["prompt_tuning"]
  trained = twice.init(base(), jax.random.key(2))
  a, _ = loss_of(twice, trained, batch())
  b, _ = loss_of(once, trained_tree(once), batch())
  assert a == b


def test_the_recursion_is_causal():
  """A later token changes no earlier prediction."""
  twice = recursion(input_skip=False)
  trained = trained_tree(twice)
  one = batch()
  changed = {**one, "tokens": one["tokens"].copy()}
  changed["tokens"][0, -1] = 50  # after the positions that predict the two targets of row 0
  assert loss_of(twice, trained, one)[0] == (loss_of(twice, trained, changed)[0])


def test_dropout_needs_a_key_and_is_reproducible():
  dropping = ConnectorConfig(width=16, heads=2, dropout=0.5, zero_output=False)
  twice = recursion(connector=dropping)
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
    return flop_count.flops(function, trained_tree(method))

  once, twice, both = (METHODS[n] for n in ("prompt_tuning", "recursion", "both_prompts_trained"))
  one_forward = flops(twice, False) - flops(once, False)
  assert flops(both, True) - flops(twice, True) > 0.5 * one_forward


@pytest.mark.parametrize(
  "name, passes",
  [
    ("prompt_tuning", 1),
    ("late_prompt_tuning", 1),
    ("recursion", 2),
    ("within_the_stack", 4),  # the layers below, and three passes
    ("control_of_one_pass", 2),
    ("id_pt", 0),
    ("prompt_for_each_task", 0),
  ],
)
def test_the_rows_share_a_prompt_in_every_pass(name, passes, monkeypatch):
  shared, can_share = [], prompts.can_share
  monkeypatch.setattr(
    prompts, "can_share", lambda *given: shared.append(can_share(*given)) or shared[-1]
  )
  method = METHODS[name]
  jax.eval_shape(lambda t: method.loss(t, frozen(method), batch(), None), trained_tree(method))
  assert shared == [True] * passes if passes else shared == [False]


@pytest.mark.parametrize("name", ["lora", "adapters", "fine_tuning"])
def test_training_starts_from_the_unmodified_lm(name):
  zero_shot = loss_of(METHODS["zero_shot"], {}, batch())[0]
  start = loss_of(METHODS[name], trained_tree(METHODS[name]), batch())[0]
  np.testing.assert_allclose(start, zero_shot, rtol=1e-6)


def test_a_prefix_starts_as_the_text_that_it_is_taken_from():
  """A text attends to an earlier one by its keys and values only."""
  prefix, prompt = PrefixTuning(CONFIG, RANDOM_START), METHODS["prompt_tuning"]
  losses = [loss_of(method, trained_tree(method), batch())[0] for method in (prefix, prompt)]
  np.testing.assert_allclose(*losses, rtol=1e-6)
  assert prefix.num_virtual_tokens(trained_tree(prefix), frozen(prefix)) == 5


def test_fine_tuning_refuses_what_would_get_no_gradient():
  """The products of experts, and those with quantised matrices, are for frozen weights."""
  routed = types.SimpleNamespace(experts=4)
  with pytest.raises(UserError, match="mixture of experts"):
    FineTuning.build(base(routed), {})
  leaves = paths.flatten(PARAMS)
  leaves["layers/attn/q/kernel"] = quantized.quantize(
    leaves["layers/attn/q/kernel"], "int8", 1, "float32"
  )
  with pytest.raises(UserError, match="model.quantize"):
    FineTuning.build(base(params=paths.unflatten(leaves)), {})


FORMS = {
  "paper": {},
  "read below the end": {"read": 2},
  "within the stack": {"read": 2, "write": 1},
  "one pass": {"write": 1, "passes": 1},
  "three passes": {"read": 2, "write": 1, "passes": 3},
}


@pytest.mark.parametrize(
  "kind, form",
  [
    *(("transformer", form) for form in FORMS),
    *itertools.product(("linear", "concat", "mix", "tokens"), ("paper", "three passes")),
  ],
)
def test_every_form_starts_as_the_single_pass_after_its_prompt(kind, form):
  """Nothing is added at the start, and a later prompt starts as the first one's own states."""
  method = recursion(kind=kind, zero_output=True, prompt_unit=5.0, **FORMS[form])
  once = METHODS["prompt_tuning"]
  tree = method.init(base(), jax.random.key(2))
  if not method.layers.write:
    tree["prompt"] = {"vectors": PROMPT}
  expected = loss_of(once, {"prompt": {"vectors": PROMPT}}, batch())[0]
  np.testing.assert_allclose(loss_of(method, tree, batch())[0], expected, rtol=1e-6)


def test_a_late_prompt_starts_as_the_states_of_its_text():
  """Only the text's own states below differ from those after a prompt at the input."""
  method = LatePromptTuning(CONFIG, RANDOM_START, prompt_layer=1, prompt_unit=5.0)
  vectors = trained_tree(method)["prompt"]["vectors"]
  at_input = trained_tree(METHODS["prompt_tuning"])["prompt"]["vectors"]
  stream = method.layers.prompt_below(PARAMS, at_input)
  np.testing.assert_allclose(vectors * 5.0, stream, rtol=1e-5)


def test_a_first_pass_costs_only_the_layers_that_are_read():
  def flops(method):
    loss = lambda t: method.loss(t, frozen(method), batch(spare=100), None)[0]
    return flop_count.flops(loss, trained_tree(method))

  kind = {"kind": "mix", "last_prompt": "none"}
  one, whole = flops(METHODS["prompt_tuning"]), flops(recursion(**kind))
  # Of three layers: two in pass one, and two more after the shared one; or two passes of one.
  shared = flops(recursion(read=2, write=1, **kind))
  layer = (whole - one) / 3
  assert shared - one == pytest.approx(layer, rel=0.15)
