"""A file of lines that grows, on a disk or on an object store, where nothing is appended to.

On a store the whole file is uploaded now and then, and when `flush` asks for it.
"""

import time

from frozen_jax.core.files import user_write_errors, write_bytes
from frozen_jax.core.object_store import AnyPath, StorePath

UPLOAD_EVERY = 30.0  # seconds
_SHARE = 20  # of the time that an upload takes, at the least, passes until the next


class LineFile:
  """Lines of one writer."""

  def __init__(self, path: AnyPath):
    self.path = path
    self._text: str | None = None  # of a file on a store: as it will be there
    self._is_uploaded = True
    self._next_upload = 0.0

  def read(self) -> str:
    """The text; "" where there is no file."""
    if self._text is not None:
      return self._text
    try:
      return self.path.read_text(encoding="utf-8")
    except FileNotFoundError:
      return ""

  def append(self, line: str) -> None:
    """Adds text; UserError where the disk refuses, which may have taken a part of it."""
    if not isinstance(self.path, StorePath):
      with user_write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
        file.write(line)
      return
    self._text = self.read() + line
    self._is_uploaded = False
    if time.monotonic() >= self._next_upload:
      self.flush()

  def replace(self, text: str) -> None:
    """Other text in place of all, atomically."""
    write_bytes(self.path, text.encode())
    if isinstance(self.path, StorePath):
      self._text, self._is_uploaded = text, True

  def flush(self) -> None:
    """Uploads what a store does not have yet."""
    if self._is_uploaded or self._text is None:
      return
    begun = time.monotonic()
    write_bytes(self.path, self._text.encode())
    self._is_uploaded, now = True, time.monotonic()
    self._next_upload = now + max(UPLOAD_EVERY, _SHARE * (now - begun))
