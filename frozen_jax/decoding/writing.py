"""A continuation while it is being written: when it ends, and what its text is."""

import math
from collections.abc import Callable, Sequence

from frozen_jax.decoding.drawing import Drawn
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

  def add(self, drawn: Drawn) -> None:
    """New tokens [N] of this row, up to the first below 0, which is none."""
    for token, log_prob, margin in zip(*(each.tolist() for each in drawn), strict=True):
      if self.ended or token < 0:
        break
      self._total += log_prob
      self._margin = math.nan if math.isnan(margin) else min(self._margin, margin)
      if token in self._end_ids:
        self.ended = "end"
        break
      self._ids.append(token)
      self._log_probs.append(log_prob)
      if self._sampling.stop and self._cut_at_stop():
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
