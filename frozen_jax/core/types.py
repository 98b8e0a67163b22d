"""The shape glossary and the protocols that let one floor use another without importing it.

Shape glossary (einsum letters and comments use these names everywhere):

  B  rows of a batch            T  text positions of a row      P  prompt vectors
  S  cache slots (P + T + new)  M  target positions of a row    L  layers
  D  width of the frozen LM     d  width of a small module      F  width of the MLP
  H  query heads                K  key/value heads              C  width of one head
  N  tokens of a row's choices  (C  also the choices of a row, M tokens of one choice)
  V  vocabulary                 E  experts; width of a text encoder
  Q  questions of a batch       G  passages beside a question
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import jax
import numpy as np

Tree = Any  # a pytree of arrays
Metrics = Mapping[str, jax.Array]
HostOrDevice = jax.Array | np.ndarray


class Prompt(NamedTuple):
  """What a method reads of one text before it answers; None for what its method does not ask for.

  tokens: ids of the frozen LM's tokenizer. encoder_tokens: the text in the ids of a text encoder's.
  task: which of the data sets it is from, counted from 1; 0: none of them.
  """

  tokens: Sequence[int] | np.ndarray
  encoder_tokens: Sequence[int] | None = None
  task: int | None = None


class Prompts(TypedDict):
  """What a method reads of each row of a batch.

  tokens          int32 [B, T]  ids of the frozen LM's tokenizer
  mask            int32 [B, T]  1 for real tokens
  encoder_tokens  int32 [B, S]  for a method with a text encoder: the same text in the ids of the
                                encoder's tokenizer, padded on the right
  encoder_mask    int32 [B, S]  1 for real ones of them
  encoder_states  [B, S, E]     in place of `encoder_tokens`: what the encoder makes of them
  encoder_cached  int32 [B]     beside `encoder_states`: 1 where they were known before
  task            int32 [B]     which of the data sets the row is from, counted from 1; 0: none
  """

  tokens: HostOrDevice
  mask: HostOrDevice
  encoder_tokens: NotRequired[HostOrDevice]
  encoder_mask: NotRequired[HostOrDevice]
  encoder_states: NotRequired[HostOrDevice]
  encoder_cached: NotRequired[HostOrDevice]
  task: NotRequired[HostOrDevice]


class Batch(Prompts):
  """One training or scoring batch; rows are padded on the right.

  target_positions  int32 [B, M]  the text position whose hidden state predicts the target
  target_ids        int32 [B, M]  the token to predict there
  target_mask       int32 [B, M]  1 for real targets
  """

  target_positions: HostOrDevice
  target_ids: HostOrDevice
  target_mask: HostOrDevice


class Pairs(TypedDict):
  """A batch of questions, each with the G passages that it is scored with.

  A text is a question with one of its passages. Texts stand one behind the other in rows, which
  are padded on the right; the texts of Q questions share the R rows of a unit, and there are U.

  tokens  int32 [U, R, T]     ids of the text encoder's tokenizer
  types   int32 [U, R, T]     token types: 1 for the passage where the encoder tells them apart
  mask    int32 [U, R, P, T]  1 for the tokens of the row's text p; a text without any is none
  places  int32 [U, Q, G]     which of the unit's R * P texts each passage is, the one to be found
                              first; -1: there is none
  """

  tokens: HostOrDevice
  types: HostOrDevice
  mask: HostOrDevice
  places: HostOrDevice


class Learner(Protocol):
  """What training asks of whatever it trains: a `Method`, or a network beside the LM.

  `batch` is of the learner's own kind; its `tokens` have the rows of the batch on their first axis.
  """

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Any, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """The mean over the batch's targets, and the metrics of `Method.loss`."""
    ...


class Method(Protocol):
  """What floor 3 offers: it says what is trained, the loss and how to predict.

  `frozen` is `{"lm": parameters of the giant, "fixed": small trees this stage does not train}`,
  with the parameters of a text encoder as `"encoder"` where the method has one; nothing of it is
  ever differentiated. A method is a hashable value: two that compare equal compute the same from
  the same trees (where a tree starts does not count), so they share what is compiled. `prefill` and
  `decode` are the predict functions on which `decoding` builds every kind of generation; `state` is
  opaque to it. `likelihoods` is the one by which choices are ranked.
  """

  @property
  def name(self) -> str: ...

  @property
  def encoder_input(self) -> str:
    """What of `Prompts` it reads of a text encoder: "", "encoder_tokens", or "encoder_states" too.

    The last where the states do not depend on what is trained, so that they may be kept.
    """
    ...

  def init(self, key: jax.Array) -> Tree: ...

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood in nats over the batch's targets, and metrics.

    The metrics hold at least `targets` (how many targets, the weight of this batch), `tokens`
    (real text tokens) and `correct` (rows whose every target is the arg max: teacher-forced
    exact match) and `rows` (rows with a target). `key` drives dropout; None switches it off.
    """
    ...

  def taken(self, trainable: Tree, frozen: Tree) -> int:
    """How many positions of the context the method's own vectors take before the text."""
    ...

  def prefill(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, new: int | jax.Array, room: int
  ) -> tuple[jax.Array, Tree]:
    """Reads prompts (either padding) -> float32 logits [B, V] of the next token, state.

    `new`: how many further tokens a row may come to have, for all rows or int32 [B]; `room`: for
    how many the state has room. Every array of the state has the rows on its first axis.
    """
    ...

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, state: Tree
  ) -> tuple[jax.Array, Tree]:
    """One more token a row [B] -> float32 logits [B, V] of the one after it, state."""
    ...

  def likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: jax.Array,
    choice_mask: jax.Array,
  ) -> jax.Array:
    """How likely each choice of a row is behind its prompt, which is read once: float32 [B, C].

    choices: token ids int32 [B, C, M], padded on the right; choice_mask: 1 for real ones. Returned
    is the sum of the log-likelihoods of a choice's tokens, in nats; -inf where it has none. Where
    an LM's rotations depend on how long a text is (dynamic NTK, longrope), all choices of a row
    count as long as its longest.
    """
    ...


@runtime_checkable
class TwoPass(Protocol):
  """A method whose first pass can answer alone, so that the second may be left out."""

  def first(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """Pass one as a method of its own, and its trained tree; `frozen` serves both."""
    ...


class Base(Protocol):
  """What a method's builder sees of the frozen LM."""

  @property
  def config(self) -> Any: ...  # backbones.config.DecoderConfig

  @property
  def params(self) -> Tree: ...

  @property
  def tokenizer(self) -> Any: ...  # a transformers fast tokenizer, or None

  def embed(self, token_ids: jax.Array) -> jax.Array: ...  # [B, T] -> [B, T, D]

  @property
  def embedding_rms(self) -> float: ...  # root mean square of the token embeddings

  @property
  def encoder(self) -> Any: ...  # a text encoder with config, params and tokenizer, or None
