"""Standard output and error whose reader may go away: what is written then is dropped."""

import contextlib
import io
import os
import sys
from typing import TextIO


class LossyText(io.TextIOWrapper):
  """A text stream that a closed pipe does not end; a lossy one bears every other error too."""

  def __init__(self, descriptor: int, like: TextIO, lossy: bool = False):
    super().__init__(
      os.fdopen(descriptor, "wb"),
      encoding=like.encoding,
      errors=like.errors,
      line_buffering=lossy or os.isatty(descriptor),
    )
    self._lossy = lossy

  def write(self, text: str) -> int:
    try:
      return super().write(text)
    except OSError as error:
      self._drop(error)
      return len(text)

  def flush(self) -> None:
    try:
      super().flush()
    except OSError as error:
      self._drop(error)

  def _drop(self, error: OSError) -> None:
    if not (self._lossy or isinstance(error, BrokenPipeError)):
      raise error
    drop(self)


def drop(stream: TextIO) -> None:
  """What is written to the stream from here on, and what waits in its buffer, goes nowhere."""
  with contextlib.suppress(OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def own_streams() -> None:
  """Keeps standard output for what we print: what native libraries write there goes to stderr.

  Neither stream ends the program when its reader goes (`| head`), nor does a log on a full disk.
  """
  ours = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  sys.stdout = LossyText(ours, sys.stdout)
  sys.stderr = LossyText(os.dup(sys.stderr.fileno()), sys.stderr, lossy=True)
