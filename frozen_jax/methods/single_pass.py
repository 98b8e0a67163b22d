"""What all methods of one pass through the LM share: the loss, reading a prompt, decoding, scoring.

A method of one pass says what it adds to the LM: vectors before the text, trained parts within the
layers, or weights of its own in place of the frozen ones.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones import inner_parts
from frozen_jax.backbones.cache import KVCache
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Batch, Metrics, Prompts, Tree
from frozen_jax.methods.choices import SideBySide, choice_likelihoods, longest
from frozen_jax.methods.targets import last_real, loss_at_targets
from frozen_jax.modules import soft_prompt


class Parts(NamedTuple):
  """What one pass runs on.

  params: the LM's weights, the frozen ones but in full fine-tuning (`trained`). inner: trained
  parts within the layers (`backbones.inner_parts`).
  """

  params: Tree
  inner: Tree | None = None
  trained: bool = False


@dataclasses.dataclass(frozen=True)
class SinglePass(abc.ABC):
  """One pass; `remat` recomputes each layer in the backward pass. See `core.types.Method`."""

  decoder: DecoderConfig
  remat: bool = dataclasses.field(default=False, kw_only=True)

  @property
  def encoder_input(self) -> str:
    """See `core.types.Method.encoder_input`."""
    return ""

  @abc.abstractmethod
  def parts(self, trainable: Tree, frozen: Tree) -> Parts:
    """What the pass runs on, given the trained and the frozen tree."""

  def prompt(self, trainable: Tree, frozen: Tree, prompts: Prompts) -> jax.Array | None:
    """The vectors before the texts, [P, D] for all rows or [B, P, D]; None for none."""
    del trainable, frozen, prompts
    return None

  def taken(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.taken`."""
    return inner_parts.prefix_length(self.parts(trainable, frozen).inner)

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """See `core.types.Method.loss`."""
    del key
    params, inner, trained = self.parts(trainable, frozen)
    text = lm.embed(params, self.decoder, batch["tokens"], trained=trained)
    x, mask = soft_prompt.prepend(self.prompt(trainable, frozen, batch), text, batch["mask"])
    hidden = lm.hidden(
      params, self.decoder, x, mask, inner=inner, trained=trained, remat=self.remat
    )
    hidden = hidden[:, x.shape[1] - text.shape[1] :]
    return loss_at_targets(params, self.decoder, hidden, batch, trained=trained)

  def prefill(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, new: int | jax.Array, room: int
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.prefill`."""
    parts = self.parts(trainable, frozen)
    last, cache = self._read(parts, self.prompt(trainable, frozen, prompts), prompts, new, room)
    return lm.logits(parts.params, self.decoder, last)[:, 0], cache

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, state: Tree
  ) -> tuple[jax.Array, Tree]:
    """See `core.types.Method.decode`."""
    params, inner, _ = self.parts(trainable, frozen)
    x = lm.embed(params, self.decoder, tokens[:, None])
    hidden, cache = lm.step(params, self.decoder, x, state, inner=inner)
    return lm.logits(params, self.decoder, hidden)[:, 0], cache

  def likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: jax.Array,
    choice_mask: jax.Array,
  ) -> jax.Array:
    """See `core.types.Method.likelihoods`."""
    parts, new = self.parts(trainable, frozen), longest(choice_mask)
    last, cache = self._read(parts, self.prompt(trainable, frozen, prompts), prompts, new, 0)

    def read(behind: SideBySide) -> jax.Array:
      x = lm.embed(parts.params, self.decoder, behind.tokens)
      places, among = behind.places, behind.among
      return lm.branch(parts.params, self.decoder, x, cache, places, among, inner=parts.inner)

    return choice_likelihoods(parts.params, self.decoder, last, choices, choice_mask, read)

  def _read(
    self,
    parts: Parts,
    vectors: jax.Array | None,
    prompts: Prompts,
    new: int | jax.Array,
    room: int,
  ) -> tuple[jax.Array, KVCache]:
    """The hidden state at each prompt's last real position [B, 1, D], and the cache behind it."""
    text = lm.embed(parts.params, self.decoder, prompts["tokens"])
    x, mask = soft_prompt.prepend(vectors, text, prompts["mask"])
    how = {"room": room, "inner": parts.inner}
    hidden, cache = lm.prefill(parts.params, self.decoder, x, mask, new, **how)
    return last_real(hidden, mask), cache
