"""What passes cost: a generated token two single-token ones, a text the layers that run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import flop_count
from frozen_jax.methods.layer_passes import Added, LayerPasses
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.recirculation import Mix
from frozen_jax.methods.serial_passes import SerialPasses
from frozen_jax.methods.textual_recursion import TextualRecursion
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules.connector import ConnectorConfig
from tests.methods.tiny import SETTINGS, base, recursion

CONFIG = DecoderConfig(
  vocab_size=512, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=256, tied=True
)
CONNECTOR = ConnectorConfig(width=32, layers=2, heads=2)
SHAPES = lm.param_shapes(CONFIG)


def step_flops(method, length):
  """Floating-point operations of one compiled decoding step after a text of `length` tokens."""
  init = lambda key: method.init(base(CONFIG, None), key)
  trained = jax.eval_shape(init, jax.random.key(0))
  frozen = {"lm": SHAPES, "frozen_inputs": {}}
  text = jax.ShapeDtypeStruct((1, length), jnp.int32)
  prompts = {"tokens": text, "mask": text}
  _, state = jax.eval_shape(lambda t, f, p: method.prefill(t, f, p, 1, 1), trained, frozen, prompts)
  token = jax.ShapeDtypeStruct((1,), jnp.int32)
  compiled = jax.jit(method.decode).lower(trained, frozen, token, state).compile()
  return compiled.cost_analysis()["flops"]


def test_a_token_costs_two_single_token_passes_however_long_the_text():
  once = ZeroShot(CONFIG)
  twice = NeuralRecursion(LayerPasses(CONFIG), CONNECTOR, 0.1, SETTINGS, last_prompt="none")
  short, long = 64, 1024
  growth = step_flops(twice, long) - step_flops(twice, short)
  # Attention's own: each further slot is read by the layers of both passes and of the Connector,
  # two products of a head's width and a softmax of a few operations.
  per_slot = 2 * CONFIG.layers * CONFIG.heads * (4 * CONFIG.head_dim + 12)
  per_slot += CONNECTOR.layers * (4 * CONNECTOR.width + 12 * CONNECTOR.heads)
  assert 0 < growth <= 1.25 * per_slot * (long - short)
  # The passes share one head, so two of them cost less than twice one, but for the Connector.
  assert step_flops(twice, short) < 2 * step_flops(once, short) + 4 * 32 * (128 + 12 * 32)


@pytest.mark.parametrize(
  "form, later, together",
  [
    ({}, 1, 2),
    ({"read": 3}, 1, 7 / 4),
    ({"read": 3, "write": 1}, 3 / 4, 6 / 4),
    ({"read": 3, "write": 1, "passes": 3}, 5 / 4, 8 / 4),
    ({"write": 3, "passes": 4}, 3 / 4, 7 / 4),
    ({"write": 1, "passes": 1}, 3 / 4, 1),
  ],
)
def test_passes_cost_the_layers_that_run(form, later, together):
  """As stated, by hand, and as the FLOPs of whole texts say."""
  config = dataclasses.replace(CONFIG, layers=4)
  layers = LayerPasses(config, **form)
  assert layers.costs == pytest.approx((later, together))
  added = Added(None, lambda below, first: None, Mix(0.5, matched=True))
  text = jax.ShapeDtypeStruct((1, 16), jnp.int32)
  counted = lambda method: flop_count.flops(
    lambda params, text: method.hidden(params, added, text, text), lm.param_shapes(config), text
  )
  whole = counted(LayerPasses(config, 0, passes=1))
  assert counted(layers) == pytest.approx(together * whole, rel=0.02)


def test_methods_of_two_passes_tell_their_costs():
  shared = recursion(dataclasses.replace(CONFIG, layers=4), read=3, write=1)
  assert shared.pass_costs == pytest.approx((3 / 4, 6 / 4))
  assert TextualRecursion(CONFIG, SETTINGS).pass_costs == (1, 2)
  assert SerialPasses(CONFIG, 1, None).costs == (1 / 2, 3 / 2)
