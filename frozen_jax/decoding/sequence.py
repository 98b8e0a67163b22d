"""A completion while it is generated: when it ends, and what its text is."""

import math
from collections.abc import Callable, Sequence

from frozen_jax.decoding.requests import Completion, Sampling


class SequenceState:
  """The tokens of one row.

  `finish_reason`: "" until the end, then that of `Completion`. `number` and `sample`: of the prompt
  and of the prompt's samples.
  """

  def __init__(
    self,
    number: int,
    sample: int,
    sampling: Sampling,
    end_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str] | None,
  ):
    """decode: ids -> text; needed for stop texts."""
    self.number, self.sample, self.finish_reason = number, sample, ""
    self._sampling, self._end_ids, self._decode = sampling, end_ids, decode
    self._ids: list[int] = []
    self._log_probs: list[float] = []
    self._total, self._margin, self._text = 0.0, math.inf, ""

  def add(self, tokens: list[int], log_probs: list[float], margins: list[float]) -> None:
    """New tokens of this row, as in `sampling.SampledTokens`; -1 after an end token."""
    if not self._sampling.stop:
      self._append(tokens, log_probs, margins)
      return
    for token, log_prob, margin in zip(tokens, log_probs, margins, strict=True):
      if not self.finish_reason:
        self._append([token], [log_prob], [margin])

  def _append(self, tokens: list[int], log_probs: list[float], margins: list[float]) -> None:
    count = tokens.index(-1) if -1 in tokens else len(tokens)
    ends = count > 0 and tokens[count - 1] in self._end_ids
    self._ids += tokens[: count - ends]
    self._log_probs += log_probs[: count - ends]
    self._total += sum(log_probs[:count])
    unknown = math.isnan(sum(margins[:count]))
    self._margin = math.nan if unknown else min([self._margin, *margins[:count]])
    if ends:
      self.finish_reason = "eos"
    elif self._sampling.stop and count and self._cut_at_stop():
      self.finish_reason = "stop"
    elif len(self._ids) == self._sampling.max_new_tokens:
      self.finish_reason = "length"

  def completion(self) -> Completion:
    """The finished continuation."""
    if self.finish_reason != "stop" and self._decode is not None:
      self._text = self._decode(self._ids)
    return Completion(
      self._ids, self._log_probs, self.finish_reason, self._text, self._total, self._margin
    )

  def _cut_at_stop(self) -> bool:
    """Whether a stop text occurs; cuts the text before it, and the ids where it begins."""
    assert self._decode is not None  # the engine's caller has checked it
    text = self._decode(self._ids)
    starts = [start for start in map(text.find, self._sampling.stop) if start >= 0]
    if not starts:
      return False
    self._text = text[: min(starts)]
    while self._ids and len(self._decode(self._ids)) > len(self._text):
      self._ids.pop()
      self._log_probs.pop()
    return True
