"""Errors of a disk that refuses, wherever in a chain of exceptions they are."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FULL_WORDS = ("No space left", "Disk quota exceeded", "Read-only file system")
_REFUSED = (*FULL, errno.EACCES, errno.EIO)
_REFUSED_WORDS = (*_FULL_WORDS, "Permission denied")


def is_full(error: BaseException | None) -> bool:
  """Whether the disk of an exception, or of one that led to it, takes nothing more."""
  return _found(error, FULL, _FULL_WORDS)


def is_refused(error: BaseException | None) -> bool:
  """The same, or a disk that lacks the permission or fails."""
  return _found(error, _REFUSED, _REFUSED_WORDS)


def _found(error: BaseException | None, numbers: tuple[int, ...], words: tuple[str, ...]) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in numbers:
      return True
    if any(word in str(error) for word in words):  # native code gives the text alone
      return True
    error = error.__cause__ or error.__context__
  return False
