"""Standard streams as people leave them: closed, of an encoding that lacks our characters, or with
a reader that goes away. What cannot be written then is dropped or escaped.
"""

import codecs
import contextlib
import fcntl
import io
import os
import sys
from typing import TextIO

# The ways to handle a character that an encoding lacks that end in an exception for some.
_RAISING = ("strict", "surrogateescape", "surrogatepass")


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


def complete_streams() -> None:
  """Makes the three standard streams usable, whatever the caller has done to them.

  One that is closed (`>&-`), or open the other way round, becomes the empty file, so that no file
  opened later takes its place. Characters that the encoding lacks are escaped.
  """
  for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
    if not _is_usable(descriptor):
      nowhere = os.open(os.devnull, os.O_RDWR)
      if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
      os.set_inheritable(descriptor, True)
    if getattr(sys, name) is None:
      mode, nowhere = "w" if descriptor else "r", os.open(os.devnull, os.O_RDWR)
      setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))
    stream = getattr(sys, name)
    if descriptor and isinstance(stream, io.TextIOWrapper) and stream.errors in _RAISING:
      stream.reconfigure(errors="backslashreplace")


def _is_usable(descriptor: int) -> bool:
  try:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
  except OSError:
    return False
  return mode in (os.O_RDWR, os.O_WRONLY if descriptor else os.O_RDONLY)


def is_unicode(stream: TextIO) -> bool:
  """Whether the stream's encoding has all characters."""
  return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")


def drop(stream: TextIO) -> None:
  """What is written to the stream from here on, and what waits in its buffer, goes nowhere."""
  with contextlib.suppress(OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def own_streams() -> None:
  """Keeps standard output for what we print: what native libraries write there goes to stderr.

  Neither stream ends the program when its reader goes (`| head`), nor does a log on a full disk,
  nor a stream that is closed.
  """
  complete_streams()
  ours = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  sys.stdout = LossyText(ours, sys.stdout)
  sys.stderr = LossyText(os.dup(sys.stderr.fileno()), sys.stderr, lossy=True)
