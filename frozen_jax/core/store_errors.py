"""What the drivers of object stores raise, as our errors: whose fault it is and how to mend it."""

import contextlib
import json
import os
import pathlib
import traceback
from collections.abc import Iterator
from typing import Protocol

from frozen_jax.core.errors import StoreError, UserError

_LOGIN = {
  "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
  "s3": "run aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_DRIVERS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
_EXPECTED = (FileNotFoundError, FileExistsError, IsADirectoryError)
_DENIED = (401, 403)
# botocore's errors for settings and names that are wrong; others are ValueErrors.
_MISTAKES = ("ParamValidationError", "ProfileNotFound", "ConfigParseError", "ConfigNotFound")
_SETTINGS = {
  "gs": "STORAGE_EMULATOR_HOST and GOOGLE_APPLICATION_CREDENTIALS",
  "s3": "AWS_ENDPOINT_URL, AWS_PROFILE and AWS_DEFAULT_REGION",
}


class Location(Protocol):
  """Of a `core.object_store.StorePath`, what a message says."""

  @property
  def scheme(self) -> str: ...

  @property
  def bucket(self) -> str: ...


def check_credentials_file() -> None:
  """UserError for a file of Google's credentials that is none: gcsfs goes on without."""
  if not (name := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
    return
  try:
    json.loads(pathlib.Path(name).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or "it is no JSON"
    raise UserError(
      f"GOOGLE_APPLICATION_CREDENTIALS={name} cannot be read ({reason}); name a key file, or unset"
      " it"
    ) from error


def status_of(error: BaseException) -> int:
  """The HTTP status of a driver's error; 0 without one."""
  if isinstance(error, FileExistsError):
    return 412
  response = getattr(error, "response", None)  # botocore's
  if isinstance(response, dict):
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
  code = str(getattr(error, "code", None) or getattr(error, "status", None))
  return int(code) if code.isdigit() else 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _is_mistake(error: BaseException) -> bool:
  """Whether a driver refused a value; an answer that cannot be read is the store's fault."""
  unreadable = json.JSONDecodeError | UnicodeError
  return isinstance(error, ValueError) and not isinstance(error, unreadable)


def _is_drivers(error: BaseException) -> bool:
  """Whether it is an error of a driver, or one of Python's that a driver raised."""
  modules = [type(error).__module__]
  if error.__traceback__ is not None:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    modules.append(frame.f_globals.get("__name__", ""))
  return any(module.partition(".")[0] in _DRIVERS for module in modules)


@contextlib.contextmanager
def translated(path: Location) -> Iterator[None]:
  """Turns the drivers' errors into ours, which name the path.

  Raises:
    UserError: no credentials, no permission, or a name or a setting that is wrong.
    StoreError: the store fails.
  """
  try:
    yield
  except (UserError, StoreError, *_EXPECTED):
    raise
  except Exception as error:
    if not isinstance(error, OSError | TimeoutError) and not _is_drivers(error):
      raise
    reason = " ".join((str(error) or type(error).__name__).split())[:200]
    chain = list(_chain(error))
    if _is_mistake(error) or any(type(one).__name__ in _MISTAKES for one in chain):
      raise UserError(
        f"{path} cannot be used ({reason}); check the name, and {_SETTINGS[path.scheme]}"
      ) from error
    if any("Credential" in type(one).__name__ for one in chain):
      raise UserError(
        f"no credentials for {path.bucket} ({reason}); {_LOGIN[path.scheme]}"
      ) from error
    denied = any(isinstance(one, PermissionError) or status_of(one) in _DENIED for one in chain)
    if denied or str(error).startswith("Forbidden"):
      raise UserError(
        f"no permission for {path} ({reason}); {_LOGIN[path.scheme]}, as one who may read and write"
        f" {path.bucket}"
      ) from error
    raise StoreError(
      f"{path.bucket} fails ({reason}); what is there is whole: run the same command again once it"
      " answers"
    ) from error
