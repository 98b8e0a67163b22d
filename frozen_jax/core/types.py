"""The glossary of shapes, and the protocols by which one folder uses another without importing it.

Glossary of shapes (einsum letters, annotations and comments use these letters):

  B   rows of a batch            T  text positions of a row     P   prompt vectors
  S   cache slots (P + T + new)  M  targets (of a row, a choice)  L   layers
  D   width of the frozen LM     d  width of a small module     De  width of a text encoder
  F   width of the MLP           H  query heads                 K   key/value heads
  C   width of one head          E  experts                     V   vocabulary
  A   answer choices of a row    W  beams of a prompt           Q   questions of a batch
  G   passages of a question     X  tokens of an encoder's text J   query heads of a key head
  U   units of a batch of pairs  R  rows of packed texts        k   the best k of a ranking
  O   positions of a row whose states are returned              N   as many as there are (*N: axes)
  r   half of a head's rotated width   Ee  width of an encoder's word embeddings
  h, c   heads and width of a head of a small module

Words stand for themselves: `in`, `out` of a matrix, `rank` of a low-rank one, `new` tokens after
those of a cache, `texts` of a row, `rows`, `width`.
"""

from collections.abc import Mapping, Sequence
from typing import (
  Any,
  ClassVar,
  NamedTuple,
  NotRequired,
  Protocol,
  Self,
  TypedDict,
  runtime_checkable,
)

import jax
import numpy as np

Tree = Any  # a pytree of arrays
Size = Any  # of an axis: an int, or what `jax.export` has for one that it leaves open
Metrics = Mapping[str, jax.Array | np.ndarray | np.generic]
HostOrDevice = jax.Array | np.ndarray
HostBatch = dict[str, np.ndarray]  # the arrays of a `Batch` or of `Pairs`, before a mesh has them
ROW_LOSSES = "row_losses"  # of `Metrics`, float32 [B]: the sum over a row's targets, in nats
ROW_INDEX = "row_index"  # of a `HostBatch`, int32 [B]: which row of its source each is; no input


class Prompt(NamedTuple):
  """One text that a method is to continue; None for what the method does not need.

  tokens: ids of the frozen LM's tokenizer. encoder_tokens: the same text in the ids of the text
  encoder's tokenizer. task: which of the data sets it is from, counted from 1; 0: none of them.
  """

  tokens: Sequence[int] | np.ndarray
  encoder_tokens: Sequence[int] | None = None
  task: int | None = None


class Prompts(TypedDict):
  """The inputs of a batch of prompts.

  tokens          int32 [B, T]  ids of the frozen LM's tokenizer
  mask            int32 [B, T]  1 for real tokens
  encoder_tokens  int32 [B, X]  for a method with a text encoder: the same text in the ids of the
                                encoder's tokenizer, padded on the right
  encoder_mask    int32 [B, X]  1 for real ones of them
  encoder_states  [B, X, De]    in place of `encoder_tokens`: what the encoder makes of them
  encoder_cached  int32 [B]     alongside `encoder_states`: 1 where they were known before
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

  target_positions   int32 [B, M]  the text position whose hidden state predicts the target
  target_ids         int32 [B, M]  the token to predict there
  target_mask        int32 [B, M]  1 for real targets
  first_pass_states  [B, T, _]     for a recursive LM: what its first pass makes of the tokens
  first_pass_cached  int32 [B]     alongside them: 1 where they were known before
  real_positions     int32 [C]     on one device, where much is padding: index in B * T of each real
                                   token, rising; then any from B * T on. Padding is not computed
  real_targets       int32 [S]     likewise, of targets: indices in B * M, then any from B * M on
  """

  target_positions: HostOrDevice
  target_ids: HostOrDevice
  target_mask: HostOrDevice
  first_pass_states: NotRequired[HostOrDevice]
  first_pass_cached: NotRequired[HostOrDevice]
  real_positions: NotRequired[HostOrDevice]
  real_targets: NotRequired[HostOrDevice]


class Pairs(TypedDict):
  """A batch of questions, each with the G passages among which it is scored.

  A text is a question joined to one of its passages. Several texts are packed into a row, and rows
  are padded on the right. The texts of Q questions share the R rows of a unit; a batch has U units.

  tokens      int32 [U, R, T]         ids of the text encoder's tokenizer
  types       int32 [U, R, T]         token types: 1 for the passage, if the encoder has them
  mask        int32 [U, R, texts, T]  1 for the tokens of the row's text; all 0: there is none
  text_index  int32 [U, Q, G]         index of each passage's text among the R * texts of the
                                      unit, the positive passage first; -1: no passage
  """

  tokens: HostOrDevice
  types: HostOrDevice
  mask: HostOrDevice
  text_index: HostOrDevice


@runtime_checkable
class Learner(Protocol):
  """What can be trained: a `Method`, or a network alongside the LM.

  `batch` is of the learner's own type; its `tokens` have the rows of the batch on the first axis.
  """

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Any, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """The mean over the batch's targets, and the metrics of `Method.loss`."""
    ...


@runtime_checkable
class AutoregressiveModel(Protocol):
  """The part of a `Method` on which `decoding` builds every kind of generation.

  `state` is opaque to it, but for the rows on the first axis of each of its arrays.
  """

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """How many positions of the context the method's vectors take before the text."""
    ...

  def prefill(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    max_new_tokens: int | jax.Array,
    free_slots: int,
  ) -> tuple[jax.Array, Tree]:
    """Reads prompts (either padding) -> float32 logits [B, V] of the next token, state.

    `max_new_tokens`: by how many tokens a row may grow, one number or int32 [B]; `free_slots`: how
    many more the state can hold. Every array of the state has the rows on its first axis.
    """
    ...

  def decode(
    self, trainable: Tree, frozen: Tree, tokens: jax.Array, state: Tree
  ) -> tuple[jax.Array, Tree]:
    """One more token a row [B] -> float32 logits [B, V] of the one after it, state."""
    ...


@runtime_checkable
class Method(AutoregressiveModel, Protocol):
  """A way to adapt the frozen LM: what is trained, the loss and how to predict.

  `frozen` is `{"lm": parameters of the frozen LM, "frozen_inputs": small trees that are not
  trained}`, and `"encoder"`, the parameters of a text encoder, where the method has one; nothing of
  it is ever differentiated. A method is a hashable value without arrays: two that compare equal
  compute the same from the same trees (where a tree starts does not count), so they share what is
  compiled. `prefill` and `decode` (see `AutoregressiveModel`) are the predict functions for
  generation, `log_likelihoods` is the one by which choices are ranked.

  name            as in configs and in `methods.METHODS`
  sections        the config sections that it reads: name -> their dataclass, see `config.section`
  learning_rates  the default peak rate of each top-level key that its trained trees may have
  no_decay        regular expressions, each for whole paths ("prompt/vectors") of its trained tree,
                  of leaves that weight decay leaves alone; of biases, scales, vectors and scalars
                  it never decays any
  reads_encoder   whether it has an input from a text encoder (`encoder_input`), under any settings
  frozen_inputs   names of the small trees that it may read and does not train
  without_inputs  the setting of a stage, KEY=VALUE, under which it does without them
  """

  name: ClassVar[str]
  sections: ClassVar[Mapping[str, type]]
  learning_rates: ClassVar[Mapping[str, float]]
  no_decay: ClassVar[tuple[str, ...]]
  reads_encoder: ClassVar[bool]
  frozen_inputs: ClassVar[tuple[str, ...]]
  without_inputs: ClassVar[str]

  @classmethod
  def inputs_read(cls, sections: Mapping[str, Any]) -> Mapping[str, bool]:
    """Names of the frozen inputs that it reads under these settings -> whether it needs them.

    sections: as of `build`.
    """
    ...

  @classmethod
  def build(
    cls,
    base: "Base",
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> Self:
    """The method for this frozen LM.

    Args:
      base: the frozen LM; its sizes count, and no number of it is kept.
      sections: an instance of each class of `cls.sections`, by the section's name.
      remat: what a layer keeps for the backward pass, one of `core.remat.REMAT_POLICIES`.
      datasets: the data sets that get a prompt each where `prompt.per_task`.

    Raises:
      UserError: values that make no sense, or that do not fit this LM.
    """
    ...

  @property
  def encoder_input(self) -> str:
    """Its input from a text encoder, in `Prompts`: "", "encoder_tokens" or "encoder_states".

    The last where the states do not depend on what is trained, so that they may be cached; a batch
    may hold the tokens all the same.
    """
    ...

  @property
  def part_positions(self) -> Mapping[str, str]:
    """Where trained parts and frozen inputs act on the LM, in words, by name.

    One part starts as another one only where both act at the same position. A part that is not
    named has none.
    """
    ...

  def init(self, base: "Base", key: jax.Array) -> Tree:
    """The trained tree at its start, float32; `base` is that of `build`.

    Raises UserError where the start needs what `base` lacks: a tokenizer for a prompt's text.
    """
    ...

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood in nats over the batch's targets, and metrics.

    The metrics hold at least `targets` (how many targets, the weight of this batch), `tokens`
    (real text tokens) and `correct` (rows whose every target is the arg max: teacher-forced
    exact match) and `rows` (rows with a target), all of them sums over the batch; and `ROW_LOSSES`.
    `key` drives dropout; None switches it off.
    """
    ...

  def log_likelihoods(
    self,
    trainable: Tree,
    frozen: Tree,
    prompts: Prompts,
    choices: jax.Array,
    choice_mask: jax.Array,
  ) -> jax.Array:
    """How likely each choice of a row is after its prompt, which is read once: float32 [B, A].

    choices: token ids int32 [B, A, M], padded on the right; choice_mask: 1 for real ones. Returned
    is the sum of the log-likelihoods of a choice's tokens, in nats; -inf where it has none. Where
    an LM's rotations depend on how long a text is (dynamic NTK, longrope), all choices of a row
    count as long as its longest.
    """
    ...


class PassCosts(NamedTuple):
  """What passes cost, in passes over all layers of the LM.

  later   those after the first, which is there already
  all     all of them, of a text that nothing else is asked of
  """

  later: float
  all: float


@runtime_checkable
class TwoPass(Protocol):
  """A method whose first pass can answer on its own, so that the second may be left out.

  pass_costs: of the passes; the first one that answers on its own is a whole pass.
  """

  @property
  def pass_costs(self) -> PassCosts: ...

  def first_pass(self, trainable: Tree, frozen: Tree) -> tuple[Method, Tree]:
    """The first pass as a method, and its trained tree; `frozen` serves both passes."""
    ...


@runtime_checkable
class CachesFirstPass(Protocol):
  """A method whose training batches may hold the states of its first pass, which are frozen.

  caches_first_pass: whether they shall. first_pass_layers: names the layers that they come from.
  """

  @property
  def caches_first_pass(self) -> bool: ...

  @property
  def first_pass_layers(self) -> str: ...

  def first_pass_states(self, frozen: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Tokens and mask [B, T] -> the states [B, T, _] for `Batch`'s `first_pass_states`."""
    ...


@runtime_checkable
class Base(Protocol):
  """What `Method.build` and `Method.init` see of the frozen LM."""

  @property
  def config(self) -> Any: ...  # backbones.config.DecoderConfig

  @property
  def params(self) -> Tree: ...

  @property
  def tokenizer(self) -> Any: ...  # a transformers fast tokenizer, or None

  def embed(self, token_ids: jax.Array) -> jax.Array: ...  # [B, T] -> [B, T, D]

  @property
  def embedding_rms(self) -> float: ...  # root mean square of the token embeddings

  def stream_rms(self, layer: int) -> float: ...  # that of the residual stream before a layer

  @property
  def encoder(self) -> Any: ...  # a text encoder with config, params and tokenizer, or None
