"""A continuation while it is being written: when it ends, and what its text is."""

import math
from collections.abc import Callable, Sequence

from frozen_jax.decoding.requests import Continuation, Sampling


class Writing:
  """The tokens of one row. `ended`: "" while it goes on, else by what (`Continuation.ended`)."""

  def __init__(
    self,
    number: int,
    sample: int,
    sampling: Sampling,
    end_ids: Sequence[int],
    decode: Callable[[Sequence[int]], str] | None,
  ):
    """number: of the prompt; sample: of the prompt's samples."""
    self.number, self.sample, self.ended = number, sample, ""
    self._sampling, self._end_ids, self._decode = sampling, end_ids, decode
    self._ids: list[int] = []
    self._log_probs: list[float] = []
    self._total, self._margin, self._text = 0.0, math.inf, ""

  def add(self, tokens: list[int], log_probs: list[float], margins: list[float]) -> None:
    """New tokens of this row, as `drawing.Drawn` has them; behind an end token stand none (-1)."""
    if not self._sampling.stop:
      self._take(tokens, log_probs, margins)
      return
    for one in zip(tokens, log_probs, margins, strict=True):
      if not self.ended:
        self._take(*([each] for each in one))

  def _take(self, tokens: list[int], log_probs: list[float], margins: list[float]) -> None:
    count = tokens.index(-1) if -1 in tokens else len(tokens)
    ends = count > 0 and tokens[count - 1] in self._end_ids
    self._ids += tokens[: count - ends]
    self._log_probs += log_probs[: count - ends]
    self._total += sum(log_probs[:count])
    unknown = math.isnan(sum(margins[:count]))
    self._margin = math.nan if unknown else min([self._margin, *margins[:count]])
    if ends:
      self.ended = "end"
    elif self._sampling.stop and count and self._cut_at_stop():
      self.ended = "stop"
    elif len(self._ids) == self._sampling.max_new_tokens:
      self.ended = "length"

  def continuation(self) -> Continuation:
    """What was written."""
    if self.ended != "stop" and self._decode is not None:
      self._text = self._decode(self._ids)
    known = self._ids, self._log_probs, self.ended, self._text, self._total, self._margin
    return Continuation(*known)

  def _cut_at_stop(self) -> bool:
    """Whether a stop text has come up; cuts the text in front of it, the ids where it begins."""
    assert self._decode is not None  # the engine's caller has seen to it
    text = self._decode(self._ids)
    places = [at for at in (text.find(stop) for stop in self._sampling.stop) if at >= 0]
    if not places:
      return False
    self._text = text[: min(places)]
    while self._ids and len(self._decode(self._ids)) > len(self._text):
      self._ids.pop()
      self._log_probs.pop()
    return True
