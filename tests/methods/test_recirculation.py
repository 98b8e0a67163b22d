"""Recirculation and looping: shares of nothing, and the serial form against its definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import decoder_layers
from frozen_jax.methods.recirculation import Mix
from frozen_jax.methods.serial_passes import SerialPasses
from tests.methods.test_methods import METHODS, batch, loss_of
from tests.methods.tiny import CONFIG, PARAMS

pytestmark = pytest.mark.program

LOOPED = {"looped": (1, 2, 3), "looped_to_the_end": (1, CONFIG.layers, 2)}  # start, stop, passes
UNTRAINED = ["recirculation", *LOOPED, "serial_recirculation", "serial_of_all_layers"]
TOKENS = np.array([[5, 17, 3, 44, 9, 60, 2], [7, 1, 90, 12, 33, 21, 8]], np.int32)


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_share_of_nothing_is_the_lm(name):
  method = METHODS[name]
  identity = dataclasses.replace(method, mix=dataclasses.replace(method.mix, share=0.0))
  (loss, _), (other, _) = (loss_of(one, {}, batch()) for one in (identity, METHODS["zero_shot"]))
  if isinstance(method.layers, SerialPasses):  # token by token: not bit by bit
    np.testing.assert_allclose(loss, other, rtol=2e-6)
  else:
    assert loss == other
  assert abs(loss_of(method, {}, batch())[0] - loss) > 1e-3


@functools.partial(jax.jit, static_argnums=(1, 2))
def run(stream, start, stop):
  """The stream after these layers; nothing is padding."""
  layers, mask = range(start, stop), np.ones_like(TOKENS)
  return decoder_layers.run(PARAMS, CONFIG, stream, mask, layers)[0]


@pytest.mark.parametrize("name", LOOPED)
def test_a_loop_moves_the_stream_before_it_by_a_share_towards_the_one_after_it(name):
  """By whole passes; nothing is scaled, and the final norm comes once, at the end."""
  (start, stop, passes), method, mask = LOOPED[name], METHODS[name], np.ones_like(TOKENS)
  added = method.added({}, {}, {}, None)
  hidden = jax.jit(lambda tokens: method.layers.hidden(PARAMS, added, tokens, mask))(TOKENS)

  stream = lm.input_stream(PARAMS, CONFIG, lm.embed(PARAMS, CONFIG, TOKENS), mask)
  below = x = run(stream, 0, start)
  for _ in range(passes - 1):
    x = below + 0.3 * (run(x, start, stop) - below)
  last = lm.output_states(PARAMS, CONFIG, run(x, start, CONFIG.layers))
  np.testing.assert_allclose(hidden, last, atol=1e-5)


@pytest.mark.parametrize("write, read", [(1, 2), (0, 2), (2, None), (0, None)])
def test_the_serial_form_is_a_full_pass_after_the_second_passes_of_earlier_tokens(write, read):
  """By whole passes: of each token the normal stream, after the mixed streams of those before."""
  junction = Mix(0.3, matched=True)
  layers = SerialPasses(CONFIG, write, read)
  mask = np.ones_like(TOKENS)
  added = METHODS["recirculation"].added({}, {}, {}, None)._replace(junction=junction)
  hidden = jax.jit(lambda tokens: layers.hidden(PARAMS, added, tokens, mask))(TOKENS)

  # Of this model the embeddings are the stream before the first layer.
  stream = lm.input_stream(PARAMS, CONFIG, lm.embed(PARAMS, CONFIG, TOKENS), mask)
  below = run(stream, 0, write)
  mixed = below[:, :0]
  for at in range(TOKENS.shape[1]):  # what stands after a token changes nothing there
    normal = jnp.concatenate([mixed, below[:, at:]], axis=1)
    handed = run(normal, write, CONFIG.layers if read is None else read)
    last = lm.output_states(PARAMS, CONFIG, run(handed, read or CONFIG.layers, CONFIG.layers))
    np.testing.assert_allclose(hidden[:, at], last[:, at], atol=1e-5)
    handed = last if read is None else handed
    again = junction.next_input(handed[:, at : at + 1], below[:, at : at + 1])
    mixed = jnp.concatenate([mixed, again], axis=1)
