"""What all methods of a causal LM do alike: next-token logits, and scores of choices.

A method says how it reads prompts, takes a token more, and reads continuations, each up to the
hidden states of its last pass (`read_prompts`, `read_token`, `read_continuations`).
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Prompts, Tree
from frozen_jax.methods.scoring import Continuations, choice_log_likelihoods, longest_choice


class CausalLMMethod(abc.ABC):
  """Prefill, decoding and scoring of a method; see `core.types.Method`."""

  decoder: DecoderConfig

  frozen_inputs: ClassVar[tuple[str, ...]] = ()
  without_inputs: ClassVar[str] = "frozen_inputs='()'"

  @classmethod
  def inputs_read(cls, sections: Mapping[str, Any]) -> Mapping[str, bool]:
    """See `core.types.Method.inputs_read`; here all, of which none is needed."""
    del sections
    return dict.fromkeys(cls.frozen_inputs, False)

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`."""
    return {}

  @abc.abstractmethod
  def read_prompts(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B 1 D"], Any]:
    """The hidden state at each prompt's last real position, and the state of decoding after it."""

  @abc.abstractmethod
  def read_token(
    self, trainable: Tree, frozen: Tree, tokens: Int[Array | np.ndarray, "B"], state: Any
  ) -> tuple[Float[Array, "B 1 D"], Any]:
    """The hidden state of one more token a row, and the state after it."""

  @abc.abstractmethod
  def read_continuations(
    self, trainable: Tree, frozen: Tree, continuations: Continuations, state: Any
  ) -> Float[Array, "B N D"]:
    """The hidden states of several continuations at once; the state stays."""

  def lm_params(self, trainable: Tree, frozen: Tree) -> Tree:
    """The weights of the LM; here the frozen ones."""
    del trainable
    return frozen["lm"]

  def prefill(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | Int[Array | np.ndarray, "*B"],
    free_slots: int,
  ) -> tuple[Float[Array, "B V"], Any]:
    """See `core.types.Method.prefill`."""
    last, state = self.read_prompts(trainable, frozen, prompts, max_new_tokens, free_slots)
    return self._logits(trainable, frozen, last), state

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: Int[Array | np.ndarray, "B"], state: Any
  ) -> tuple[Float[Array, "B V"], Any]:
    """See `core.types.Method.decode`."""
    hidden, state = self.read_token(trainable, frozen, tokens, state)
    return self._logits(trainable, frozen, hidden), state

  def log_likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: Int[Array | np.ndarray, "B A M"],
    choice_mask: Int[Array | np.ndarray, "B A M"],
  ) -> Float[Array, "B A"]:
    """See `core.types.Method.log_likelihoods`: all choices of a row are read together."""
    longest = longest_choice(choice_mask)
    last, state = self.read_prompts(trainable, frozen, prompts, longest, 0)
    return choice_log_likelihoods(
      self.lm_params(trainable, frozen),
      self.decoder,
      last,
      choices,
      choice_mask,
      lambda continuations: self.read_continuations(trainable, frozen, continuations, state),
    )

  def _logits(
    self, trainable: Tree, frozen: Tree, hidden: Float[Array, "B 1 D"]
  ) -> Float[Array, "B V"]:
    return lm.logits(self.lm_params(trainable, frozen), self.decoder, hidden)[:, 0]
