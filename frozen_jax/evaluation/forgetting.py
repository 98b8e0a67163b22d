"""Forgetting: what a method changes of the LM's perplexity on general text.

A window of plain text is split in two; the first half is the input and the second is predicted. So
one measure serves every method: a text encoder reads the first half and never what is to be
predicted. See docs/paper.md, 0 and 5.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from frozen_jax.core.types import Tree
from frozen_jax.data.rows import Rows
from frozen_jax.data.sources import Example
from frozen_jax.data.tasks import Encoded, EncoderTokenizer, LanguageModelTask, Windows
from frozen_jax.evaluation.teacher_forced import teacher_forced_scores
from frozen_jax.models.frozen_lm import FrozenLM
from frozen_jax.models.tuned_model import TunedModel, batch_loss
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.checksum import checksum


class TextHalves:
  """Plain text in windows of `length` tokens, the second half of each of which is its targets.

  A task like those of `data.tasks`, for `scoring_batches`. encoder: makes the text encoder's input
  of a row, which is the first half. Rows belong to none of the data sets of a method with a prompt
  for each. vocab_size: V of the LM.
  """

  def __init__(
    self,
    tokenizer: Any,
    length: int,
    encoder: EncoderTokenizer | None = None,
    vocab_size: int | None = None,
  ):
    self._windows = LanguageModelTask(tokenizer, (length,), vocab_size)
    self._encoder = encoder
    self.lengths = (length,)

  def prepare(self, source: Rows[Example]) -> "_Halves":
    """Tokenises the whole source into memory (4 bytes a token)."""
    return _Halves(self._windows.prepare(source), self._windows.tokenizer, self._encoder)


class _Halves:
  def __init__(self, windows: Windows, tokenizer: Any, encoder: EncoderTokenizer | None):
    self._windows, self._tokenizer, self._encoder = windows, tokenizer, encoder

  def __len__(self) -> int:
    return len(self._windows)

  def __getitem__(self, index: int) -> Encoded:
    tokens = self._windows[index].tokens
    target_start = len(tokens) // 2  # at least 1: no window has less than two tokens
    encoder_tokens, truncated = None, False
    if self._encoder is not None:
      text = self._tokenizer.decode(tokens[:target_start], skip_special_tokens=True)
      encoder_tokens, truncated = self._encoder.ids(text)
    return Encoded(tokens, target_start, encoder_tokens, task=0, truncated=truncated)


def general_text(
  lm: FrozenLM, batches: Iterable[Mapping[str, Any]], weights: Tree | None = None
) -> dict[str, Any]:
  """Scores of an LM without any method on general text: {"perplexity", "loss", "checksum"}.

  Args:
    lm: the frozen LM.
    batches: of `TextHalves`.
    weights: in place of the LM's own, of the same shapes.

  `checksum` is over every bit of the weights.
  """
  weights = lm.params if weights is None else weights
  frozen = {"lm": weights, "frozen_inputs": {}}
  zero_shot = lm.zero_shot().method
  loss = lambda batch: batch_loss(zero_shot, {}, frozen, batch)
  scores = teacher_forced_scores(loss, batches, functools.partial(shard_batch, mesh=lm.mesh))
  return {
    "perplexity": scores["perplexity"],
    "loss": scores["loss"],
    "checksum": checksum(weights),
  }


def forgetting(
  model: TunedModel,
  batches: Iterable[Mapping[str, Any]],
  before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """What training has changed of the LM, JSON-ready.

  Args:
    model: after training.
    batches: of `TextHalves`, with the text encoder's input where the method has one.
    before: `general_text` of the LM, measured before training; None measures it now, of the frozen
      weights.

  Returns:
    before, after: perplexity of the LM's weights; "after" those that the method trained in place of
    the frozen ones, if it did. with_method: with everything trained in use. change,
    with_method_change: the rise over `before`, percent. identical: whether the weights are the same
    bit by bit; checksum_before, checksum_after: of them.
  """
  batches = list(batches)
  if before is None:
    before = general_text(model.lm, batches)
  weights, after = lm_weights(model), before
  if checksum(weights) != before["checksum"]:  # equal bits have an equal perplexity
    after = general_text(model.lm, batches, weights)
  with_method = teacher_forced_scores(
    model.loss, batches, functools.partial(shard_batch, mesh=model.lm.mesh)
  )
  return {
    "before": before["perplexity"],
    "after": after["perplexity"],
    "with_method": with_method["perplexity"],
    "change": _perplexity_rise(before["loss"], after["loss"]),
    "with_method_change": _perplexity_rise(before["loss"], with_method["loss"]),
    "identical": before["checksum"] == after["checksum"],
    "checksum_before": before["checksum"],
    "checksum_after": after["checksum"],
  }


def lm_weights(model: TunedModel) -> Tree:
  """The LM's weights after training: those trained in place of the frozen ones, or the frozen."""
  frozen = model.lm.params
  if "lm" not in model.trained:
    return frozen
  return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), model.trained["lm"], frozen)


def _perplexity_rise(before: float, after: float) -> float:
  """By how many percent the perplexity rises between two losses in nats."""
  return 100.0 * math.expm1(min(after - before, 700.0))
