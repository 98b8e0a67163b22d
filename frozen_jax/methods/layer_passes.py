"""Passes over some layers of a frozen decoder, which start where trained things are added.

The layers below `write` run once. What they leave (`below`) is joined by a prompt and by what a
junction makes of the states that a pass handed on, and the layers from `write` on run on it:

  embeddings -> layers 0 to write -> below -> junction -> layers write to the last -> hidden states
                                       ^         ^
                            later prompt         states before layer `read`, of the pass before

With one pass nothing ran before: the junction reads `below` itself. Passes before the last end at
`read`. In decoding the shared layers have one cache, and each pass one for the layers it runs.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import decoder_layers
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import HostOrDevice, PassCosts, Tree
from frozen_jax.methods.scoring import Continuations

Vectors = Float[Array, "*B P D"]
Stream = Float[Array, "B _ D"]


@runtime_checkable
class Junction(Protocol):
  """What comes between two passes: from states handed on, and `below`, to the next pass's input.

  A junction's cache is whatever it needs of earlier positions, rows first.
  """

  def text(
    self, index: int, handed: Array, below: Array, mask: HostOrDevice, free_slots: int
  ) -> tuple[Array, Tree]:
    """The input [B, T, D] after whole texts' pass `index`, and a cache with free slots."""
    ...

  def step(self, handed: Array, below: Array, cache: Tree) -> tuple[Array, Tree]:
    """The input [B, 1, D] of one more token, and the longer cache."""
    ...

  def after_cache(self, handed: Array, below: Array, cache: Tree, mask: Array) -> Array:
    """The inputs [B, N, D] of continuations; mask: True where one of them attends to another."""
    ...


class PositionJunction(abc.ABC):
  """A junction that works position by position, so that it has no cache; see `Junction`."""

  @abc.abstractmethod
  def next_input(
    self, handed: Float[Array, "B T D"], below: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """The next pass's input at each position."""

  def text(
    self, index: int, handed: Array, below: Array, mask: HostOrDevice, free_slots: int
  ) -> tuple[Array, Tree]:
    """See `Junction.text`."""
    del index, mask, free_slots
    return self.next_input(handed, below), ()

  def step(self, handed: Array, below: Array, cache: Tree) -> tuple[Array, Tree]:
    """See `Junction.step`."""
    return self.next_input(handed, below), cache

  def after_cache(self, handed: Array, below: Array, cache: Tree, mask: Array) -> Array:
    """See `Junction.after_cache`."""
    del cache, mask
    return self.next_input(handed, below)


class NoConnector(PositionJunction):
  """The junction that hands on `below` as it is: one pass, with a prompt where it is written."""

  def next_input(
    self, handed: Float[Array, "B T D"], below: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """See `PositionJunction.next_input`."""
    del handed
    return below


class Added(NamedTuple):
  """What is added to the frozen decoder.

  first_prompt   vectors before the embedded text, of the shared layers and of pass one; or None
  later_prompt   from `below` [B, T, D], and the first prompt's rows there, to the prompt of the
                 later passes, or None
  junction       between the passes
  """

  first_prompt: Float[Array, "P D"] | None
  later_prompt: Callable[[Array, Array | None], Vectors | None]
  junction: Junction


class State(NamedTuple):
  """Of decoding. shared: cache of the layers below `write`, or None; passes: of those above, one a
  pass (`SerialPasses`: one a span of layers); junctions: one a junction."""

  shared: KVCache | None
  passes: tuple[KVCache, ...]
  junctions: tuple[Tree, ...]


@dataclasses.dataclass(frozen=True)
class LayerPasses:
  """Which layers run how often.

  write   how many layers run before anything is added; 0: it is added to the input embeddings
  read    how many layers, but not all, have run where a pass hands on its states; None: all of
          them and the final norm
  passes  over the layers from `write` on
  remat   what a layer keeps for the backward pass, see `core.remat`
  normed  whether a pass that is read after all layers hands on its states after the final norm
  """

  decoder: DecoderConfig
  write: int = 0
  read: int | None = None
  passes: int = 2
  remat: str = "none"
  normed: bool = True

  @property
  def junctions(self) -> int:
    """How many there are: between passes, or before the only one."""
    return max(1, self.passes - 1)

  @property
  def costs(self) -> PassCosts:
    """The layers that run, by those of the LM; the first pass ends at `read`."""
    later = [self._layers_after(index) for index in range(self.junctions)]
    first = [range(self.write), *([self._layers_before_read] if self.passes > 1 else [])]
    by_lm = lambda spans: sum(map(len, spans)) / self.decoder.layers
    return PassCosts(by_lm(later), by_lm([*first, *later]))

  def hidden(
    self,
    params: Tree,
    added: Added,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
    states: Float[HostOrDevice, "B T _"] | None = None,
    real: Int[HostOrDevice, "C"] | None = None,
  ) -> Float[Array, "B T D"]:
    """The last pass's hidden states of whole texts.

    states: what `frozen_states` gave. real: see `core.types.Batch`'s `real_positions`.
    """

    def run_layers(x, mask, prompt, layers):
      return decoder_layers.run(
        params, self.decoder, x, mask, layers, prompt=prompt, remat=self.remat, real=real
      )

    run = lambda x, prompt, layers: self._run(params, x, mask, prompt, layers, run_layers)
    if states is None:
      below, prompt_below = self._below(params, added.first_prompt, tokens, mask, run_layers)
      handed = self._first(below, prompt_below, run)
    else:
      prompt_below = self.prompt_below(params, added.first_prompt)
      below, handed = self._unpack(params, tokens, jnp.asarray(states))
    later = added.later_prompt(below, prompt_below)
    for index in range(self.junctions):
      x, _ = added.junction.text(index, handed, below, mask, 0)
      handed = run(x, later, self._layers_after(index))
    return self._output(params, handed)

  def frozen_states(
    self,
    params: Tree,
    first_prompt: Float[Array, "P D"] | None,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
  ) -> Float[Array, "B T _"]:
    """What nothing trained changes: `below` where layers are shared, then pass one's states."""
    below, prompt_below = self._below(params, first_prompt, tokens, mask)
    parts = [below] if self.write else []
    if self.passes > 1:
      run = lambda x, prompt, layers: self._run(params, x, mask, prompt, layers)
      parts.append(self._first(below, prompt_below, run))
    return jnp.concatenate(parts, axis=-1)

  def prefill(
    self,
    params: Tree,
    added: Added,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
    max_new_tokens: int | Int[HostOrDevice, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B T D"], State]:
    """`hidden`, and the state after which tokens may follow; see `core.types.Method.prefill`."""
    caches: list[KVCache] = []

    def prefill(stream, mask, prompt, layers):
      stream, prompt, cache = decoder_layers.prefill(
        params, self.decoder, stream, mask, max_new_tokens, free_slots, layers, prompt=prompt
      )
      caches.append(cache)
      return stream, prompt

    run = lambda x, prompt, layers: self._run(params, x, mask, prompt, layers, prefill)
    below, prompt_below = self._below(params, added.first_prompt, tokens, mask, prefill)
    handed = self._first(below, prompt_below, run)
    later, junctions = added.later_prompt(below, prompt_below), []
    for index in range(self.junctions):
      x, cache = added.junction.text(index, handed, below, mask, free_slots)
      junctions.append(cache)
      handed = run(x, later, self._layers_after(index))
    shared = caches.pop(0) if self.write else None
    return self._output(params, handed), State(shared, tuple(caches), tuple(junctions))

  def step(
    self, params: Tree, junction: Junction, tokens: Int[HostOrDevice, "B"], state: State
  ) -> tuple[Float[Array, "B 1 D"], State]:
    """One more token a row: its hidden state in the last pass, and the longer state."""
    below, shared = lm.embed(params, self.decoder, tokens[:, None]), state.shared
    if shared is not None:
      below = lm.input_stream_at(params, self.decoder, below, shared.position[:, None])
      below, shared = decoder_layers.step(params, self.decoder, below, shared, range(self.write))
    old, caches, junctions = list(state.passes), [], []

    def run(x, _, layers):
      cache = old[len(caches)]
      if not self.write:
        x = lm.input_stream_at(params, self.decoder, x, cache.position[:, None])
      stream, cache = decoder_layers.step(params, self.decoder, x, cache, layers)
      caches.append(cache)
      return self._handed(params, stream, layers)

    handed = self._first(below, None, run)
    for index in range(self.junctions):
      x, cache = junction.step(handed, below, state.junctions[index])
      junctions.append(cache)
      handed = run(x, None, self._layers_after(index))
    return self._output(params, handed), State(shared, tuple(caches), tuple(junctions))

  def after_cache(
    self, params: Tree, junction: Junction, continuations: Continuations, state: State
  ) -> Float[Array, "B N D"]:
    """The last pass's hidden states of several continuations at once; the state stays."""
    tokens, position_ids, mask, _ = continuations
    caches = iter(state.passes)

    def run_after(x, cache, layers):
      return decoder_layers.after_cache(params, self.decoder, x, cache, position_ids, mask, layers)

    below = lm.embed(params, self.decoder, tokens)
    if state.shared is not None:
      positions = state.shared.position[:, None] + position_ids
      below = lm.input_stream_at(params, self.decoder, below, positions)
      below = run_after(below, state.shared, range(self.write))

    def run(x, _, layers):
      cache = next(caches)
      if not self.write:
        positions = cache.position[:, None] + position_ids
        x = lm.input_stream_at(params, self.decoder, x, positions)
      return self._handed(params, run_after(x, cache, layers), layers)

    handed = self._first(below, None, run)
    for index in range(self.junctions):
      x = junction.after_cache(handed, below, state.junctions[index], mask)
      handed = run(x, None, self._layers_after(index))
    return self._output(params, handed)

  def _first(self, below: Stream, prompt: Array | None, run: Callable[..., Stream]) -> Stream:
    """What the first junction reads: the states of pass one, or with one pass `below`."""
    return below if self.passes == 1 else run(below, prompt, self._layers_before_read)

  @property
  def _layers_before_read(self) -> range:
    return range(self.write, self.decoder.layers if self.read is None else self.read)

  def _layers_after(self, junction: int) -> range:
    is_last = junction + 1 == self.junctions
    return range(self.write, self.decoder.layers) if is_last else self._layers_before_read

  def _below(
    self,
    params: Tree,
    first_prompt: Float[Array, "P D"] | None,
    tokens: Int[HostOrDevice, "B T"],
    mask: Int[HostOrDevice, "B T"],
    run_layers: Callable[..., tuple[Stream, Array | None]] | None = None,
  ) -> tuple[Stream, Vectors | None]:
    """The text and the first prompt where they are written to, [B, T, D] and [*B, P, D]."""
    text = lm.embed(params, self.decoder, tokens)
    if not self.write:
      return text, first_prompt
    return self._run_layers(params, text, mask, first_prompt, range(self.write), run_layers)

  def prompt_below(self, params: Tree, first_prompt: Float[Array, "P D"] | None) -> Vectors | None:
    """The first prompt alone where it is written to: the text after it does not change it."""
    if first_prompt is None or not self.write:
      return first_prompt
    x = first_prompt[None].astype(params["final_norm"]["scale"].dtype)
    return self._run_layers(params, x, None, None, range(self.write))[0][0]

  def _run(
    self,
    params: Tree,
    x: Stream,
    mask: Int[HostOrDevice, "B T"],
    prompt: Vectors | None,
    layers: range,
    run_layers: Callable[..., tuple[Stream, Array | None]] | None = None,
  ) -> Stream:
    """A pass of whole texts over the layers after `write`: what it hands on, [B, T, D]."""
    stream, _ = self._run_layers(params, x, mask, prompt, layers, run_layers)
    return self._handed(params, stream, layers)

  def _run_layers(
    self,
    params: Tree,
    x: Stream,
    mask: Int[HostOrDevice, "B T"] | None,
    prompt: Vectors | None,
    layers: range,
    run_layers: Callable[..., tuple[Stream, Array | None]] | None = None,
  ) -> tuple[Stream, Float[Array, "*_ P D"] | None]:
    """The streams of texts and prompt after some layers; before the first they are embeddings."""
    if not layers.start:
      x = lm.input_stream(params, self.decoder, x, mask, lm.num_before(prompt, None))
      prompt = lm.prompt_stream(params, self.decoder, prompt)
    if run_layers is not None:
      return run_layers(x, mask, prompt, layers)
    return decoder_layers.run(
      params, self.decoder, x, mask, layers, prompt=prompt, remat=self.remat
    )

  def _handed(self, params: Tree, stream: Stream, layers: range) -> Stream:
    """The stream after these layers as it is read: after the last one as `normed` says."""
    if layers.stop < self.decoder.layers or not self.normed:
      return stream
    return lm.output_states(params, self.decoder, stream)

  def _output(self, params: Tree, handed: Stream) -> Stream:
    """The hidden states of what the last pass handed on."""
    return handed if self.normed else lm.output_states(params, self.decoder, handed)

  def _unpack(
    self, params: Tree, tokens: Int[HostOrDevice, "B T"], states: Float[Array, "B T _"]
  ) -> tuple[Stream, Stream]:
    """`below`, and what pass one handed on, of `frozen_states`."""
    below = lm.embed(params, self.decoder, tokens)
    if self.write:
      below, states = jnp.split(states, [self.decoder.width], axis=-1)
    if self.passes == 1:
      return below, below
    is_normed = self.read is None and self.normed
    return below, states.astype(params["final_norm"]["scale"].dtype) if is_normed else states
