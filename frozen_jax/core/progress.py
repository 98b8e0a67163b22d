"""Progress on standard error: a bar on a terminal, else a line of the log now and then."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds

_LOG = logging.getLogger(__name__)


def on_terminal() -> bool:
  """Whether standard error is a terminal; elsewhere no bar of a library is to be drawn."""
  return sys.stderr.isatty()


class ProgressBar(tqdm):
  """A tqdm bar, which where standard error is no terminal logs a line each `LINE_EVERY` seconds."""

  def __init__(self, *args: Any, **options: Any):
    self.as_lines = not (options.get("file") or sys.stderr).isatty()
    if self.as_lines:
      delay = max(options.get("delay") or 0.0, LINE_EVERY)
      options |= {"mininterval": LINE_EVERY, "miniters": 1, "delay": delay, "leave": False}
      options["file"] = io.StringIO()  # of what tqdm writes itself: blanks over an old bar
    super().__init__(*args, **options)
    if not self.disable:
      self._first, self._waiting_since = self.initial, self.start_t

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Draws the bar, or logs the line."""
    if not self.as_lines:
      super().display(msg, pos)
    elif msg is None:
      _LOG.info("%s", self._line())

  def _line(self) -> str:
    """`stage: 3 of 80 steps, 2:31 left, loss 1.5`."""
    now = self.format_dict
    shown = lambda count: tqdm.format_sizeof(count) if self.unit_scale else str(count)
    parts = [shown(self.n) + (f" of {shown(self.total)}" if self.total else "")]
    parts[0] += f"{'' if self.unit_scale else ' '}{self.unit.strip()}"
    parts[0] += "s" * (self.unit.strip()[-1:].islower() and not self.unit.endswith("s"))
    done = self.n - self.initial
    rate = now["rate"] or (done / now["elapsed"] if now["elapsed"] else 0.0)
    if rate > 0 and self.total and self.n < self.total:
      parts.append(f"{tqdm.format_interval((self.total - self.n) / rate)} left")
    if self.postfix:
      parts.append(str(self.postfix))
    return f"{(self.desc or 'progress').removesuffix(': ')}: {', '.join(parts)}"

  @contextlib.contextmanager
  def doing(self, what: str) -> Iterator[None]:
    """Says on a terminal what is being done meanwhile."""
    before = "" if self.disable else self.postfix
    self.set_postfix_str(what, refresh=not self.as_lines)
    yield
    self.set_postfix_str(before or "", refresh=False)

  def compiling(self) -> None:
    """Says that the next step compiles: until `advance(timed=False)` no time counts."""
    if not self.disable:
      self._waiting_since = self._time() if self.n > self._first else self.start_t
    self.set_postfix_str("compiling")

  def advance(self, timed: bool = True) -> None:
    """One step more. timed: whether it counts to the rate; one that was compiled does not."""
    if not timed and not self.disable:
      self.start_t += self._time() - self._waiting_since
      self.initial += 1
    self.update(1)

  def back_to(self, count: int) -> None:
    """Goes back; the work done so far still counts to the rate."""
    if not self.disable:
      self.initial -= self.n - count
      self.update(count - self.n)
