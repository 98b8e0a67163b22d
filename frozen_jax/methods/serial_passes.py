"""Two passes token by token: later tokens attend to the keys and values of the second pass.

The serial form of recirculation (Mozer et al., 2026; docs/paper.md, 4.3). Of each token the first,
normal pass predicts the next one; then the layers from `write` on run again on the junction's
output, and their keys and values take the place of those that the first pass left:

  token -> layers below `write` -> layers write to the last -> hidden states, which predict
                     |                   | states before layer `read`
                     +---- junction <----+
                              |
                     layers write to the last -> keys and values for later tokens

A text is a loop over its tokens, so this is slow: for evaluation and for decoding.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import cache as kv_cache
from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import decoder_layers
from frozen_jax.backbones.cache import KVCache
from frozen_jax.core.types import HostOrDevice, PassCosts, Tree
from frozen_jax.methods.layer_passes import Added, Junction, LayerPasses, State
from frozen_jax.methods.scoring import Continuations


@dataclasses.dataclass(frozen=True)
class SerialPasses(LayerPasses):
  """`LayerPasses` of two passes, the second of which is for later tokens alone.

  Nothing is added but a junction without a cache. Both passes have the same caches: one of the
  layers up to `read`, and one of those above, where there are any.
  """

  @property
  def costs(self) -> PassCosts:
    """See `LayerPasses.costs`; the first pass is a whole one."""
    later = len(range(self.write, self.decoder.layers)) / self.decoder.layers
    return PassCosts(later, 1 + later)

  def hidden(
    self,
    params: Tree,
    added: Added,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
    states: Float[HostOrDevice, "B T _"] | None = None,
    real: Int[HostOrDevice, "C"] | None = None,
  ) -> Float[Array, "B T D"]:
    """The first pass's hidden states of whole texts, token by token; `states` are None."""
    del real
    assert states is None  # a token's states depend on the second passes of those before it
    return self.prefill(params, added, tokens, mask, 0, 0)[0]

  def prefill(
    self,
    params: Tree,
    added: Added,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
    max_new_tokens: int | Int[HostOrDevice, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B T D"], State]:
    """See `LayerPasses.prefill`; padding takes no slots of the caches."""
    mask = jnp.asarray(mask)
    caches = [
      self._empty(params, mask, max_new_tokens, mask.shape[1] + free_slots, layers)
      for layers in (range(self.write), *self._spans)
    ]
    state = State(caches[0] if self.write else None, tuple(caches[1:]), ())
    return self._steps(params, added.junction, jnp.asarray(tokens), mask, state)

  def step(
    self, params: Tree, junction: Junction, tokens: Int[HostOrDevice, "B"], state: State
  ) -> tuple[Float[Array, "B 1 D"], State]:
    """See `LayerPasses.step`: the first pass's hidden state, and the caches of the second."""
    below, shared = lm.embed(params, self.decoder, tokens[:, None]), state.shared
    if shared is not None:
      below = lm.input_stream_at(params, self.decoder, below, shared.position[:, None])
      below, shared = decoder_layers.step(params, self.decoder, below, shared, range(self.write))
    (handed, *above), _ = self._pass(params, below, state.passes)
    again, _ = junction.step(handed, below, ())
    _, caches = self._pass(params, again, state.passes)
    return above[-1] if above else handed, State(shared, caches, ())

  def after_cache(
    self, params: Tree, junction: Junction, continuations: Continuations, state: State
  ) -> Float[Array, "B N D"]:
    """See `LayerPasses.after_cache`: token by token, each choice in rows of its own."""
    tokens, _, attention_mask, choices = continuations
    rows, length = tokens.shape
    apart = lambda a: a.reshape(rows * choices, length // choices)
    real = jnp.diagonal(attention_mask, axis1=1, axis2=2).astype(jnp.int32)
    state = jax.tree.map(lambda a: jnp.repeat(a, choices, axis=0), state)
    longer = lambda cache: kv_cache.with_free_slots(cache, length // choices)
    state = jax.tree.map(longer, state, is_leaf=_is_cache)
    hidden, _ = self._steps(params, junction, apart(tokens), apart(real), state)
    return hidden.reshape(rows, length, -1)

  @property
  def _spans(self) -> tuple[range, ...]:
    """The layers that each cache of the passes is of."""
    upper = range(self._layers_before_read.stop, self.decoder.layers)
    return (self._layers_before_read, upper) if upper else (self._layers_before_read,)

  def _pass(
    self, params: Tree, x: Float[Array, "B 1 D"], caches: Sequence[KVCache]
  ) -> tuple[list[Float[Array, "B 1 D"]], tuple[KVCache, ...]]:
    """What one token's pass hands on after each span of layers, and the longer caches."""
    if not self.write:
      x = lm.input_stream_at(params, self.decoder, x, caches[0].position[:, None])
    handed, longer = [], []
    for layers, cache in zip(self._spans, caches, strict=True):
      x, cache = decoder_layers.step(params, self.decoder, x, cache, layers)
      handed.append(self._handed(params, x, layers))
      longer.append(cache)
    return handed, tuple(longer)

  def _steps(
    self,
    params: Tree,
    junction: Junction,
    tokens: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    state: State,
  ) -> tuple[Float[Array, "B T D"], State]:
    """`step` of each token; padding gives states without meaning and leaves the state as it was."""

    def body(state, given):
      token, real = given
      hidden, longer = self.step(params, junction, token, state)
      of_cache = lambda old, new: _where_real(real, new, old)
      return jax.tree.map(of_cache, state, longer, is_leaf=_is_cache), hidden[:, 0]

    state, hidden = jax.lax.scan(body, state, (tokens.T, mask.T))
    return jnp.moveaxis(hidden, 0, 1), state

  def _empty(
    self,
    params: Tree,
    mask: Int[Array, "B T"],
    max_new_tokens: int | Int[HostOrDevice, "*B"],
    slots: int,
    layers: range,
  ) -> KVCache | None:
    """A cache of these layers with so many free slots: that of a padding token, without it."""
    if not layers:
      return None
    stream = jnp.zeros((len(mask), 1, self.decoder.width), jnp.float32)
    none, in_the_end = jnp.zeros_like(mask[:, :1]), mask.sum(axis=1) + max_new_tokens
    _, _, cache = decoder_layers.prefill(
      params, self.decoder, stream, none, in_the_end, slots - 1, layers
    )
    return cache._replace(used=jnp.zeros_like(cache.used))


def _is_cache(one: object) -> bool:
  return isinstance(one, KVCache)


def _where_real(real: Int[Array, "B"], longer: KVCache, cache: KVCache) -> KVCache:
  """The longer cache where the token is real; else a later one takes the slot that it filled."""
  kept = {
    name: jnp.where(real[:, None] > 0 if name == "mask" else real > 0, new, getattr(cache, name))
    for name, new in longer._asdict().items()
    if name in ("mask", "position", "used")
  }
  return longer._replace(**kept)
