"""Two processes that work in turn, so that whatever else the machine does hits both alike."""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any


class Side:
  """A running `benchmarks.worker`; a context manager that ends it."""

  def __init__(self, module: str, *arguments: str):
    self.name = " ".join([module, *arguments])
    self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      text=True,
    )

  def ask(self, word: str) -> dict[str, Any]:
    """Sends a word and waits for the answer.

    Raises RuntimeError with what the process said where it died.
    """
    try:
      self._process.stdin.write(word + "\n")
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    if not answer:
      self._process.wait()
      self._said.seek(0)
      raise RuntimeError(f"{self.name} died:\n{self._said.read()[-4000:]}")
    return json.loads(answer)

  def __enter__(self) -> "Side":
    return self

  def __exit__(self, *_: object) -> None:
    self._process.kill()
    self._process.communicate()
    self._said.close()


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Seconds a step of each pair, the losses of the first steps, and the peaks.

  seconds: (ours, peer) of each pair. losses: (ours, peer) of the first step of all.
  peak_bytes: (ours, peer), of the whole life of each process. matrix: the best rate of a matrix
  product, in FLOPs a second, of each side.
  """

  seconds: Sequence[tuple[float, float]]
  losses: tuple[float, float]
  peak_bytes: tuple[int, int]
  matrix: tuple[float, float]
  ends: tuple[dict[str, Any], dict[str, Any]]  # the last answers

  def ratios(self) -> tuple[float, float, float]:
    """Minimum, median and maximum over pairs of the peer's time by ours: above 1 we are faster."""
    ratios = [peer / ours for ours, peer in self.seconds]
    return min(ratios), statistics.median(ratios), max(ratios)

  def memory_ratio(self) -> float:
    """Our peak by the peer's: below 1 we need less."""
    return self.peak_bytes[0] / self.peak_bytes[1]

  def median(self, side: int) -> float:
    """Median seconds a step: side 0 is ours, 1 the peer's."""
    return statistics.median(pair[side] for pair in self.seconds)


def compare(ours: Side, peer: Side, pairs: int, warm: int = 2) -> Comparison:
  """Steps in turn: `warm` unmeasured ones each, then `pairs`; who goes first alternates."""
  sides = (ours, peer)
  losses = tuple(side.ask("step")["loss"] for side in sides)
  for _ in range(warm - 1):
    for side in sides:
      side.ask("step")
  seconds = []
  for turn in range(pairs):
    order = sides if turn % 2 == 0 else sides[::-1]
    took = {side: side.ask("step")["seconds"] for side in order}
    seconds.append((took[ours], took[peer]))
  matrix = tuple(side.ask("matrix")["flops_per_second"] for side in sides)
  ends = tuple(side.ask("end") for side in sides)
  peaks = tuple(end["peak_bytes"] for end in ends)
  return Comparison(seconds, losses, peaks, matrix, ends)
