"""Errors of a disk that refuses, wherever in a chain of exceptions they are."""

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "Read-only file system")
_REFUSED = (*FULL, errno.EACCES, errno.EIO)
_REFUSED_WORDS = (*_FULL_WORDS, "Permission denied")


def is_full(error: BaseException | None) -> bool:
  """Whether the disk of an exception, or of one that led to it, takes nothing more."""
  return bool(_found(error, FULL, _FULL_WORDS))


def refusal(error: BaseException | None) -> str:
  """Why a disk takes nothing more, lacks the permission or fails, in a few words; else ""."""
  return _found(error, _REFUSED, _REFUSED_WORDS)


def _found(error: BaseException | None, numbers: tuple[int, ...], words: tuple[str, ...]) -> str:
  while error is not None:
    if isinstance(error, OSError) and error.errno in numbers:
      return os.strerror(error.errno)
    for word in words:
      if word in str(error):  # native code gives the text alone
        return word
    error = error.__cause__ or error.__context__
  return ""
