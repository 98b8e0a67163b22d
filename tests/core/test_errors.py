import errno
import os

import pytest

from frozen_jax.core.errors import UserError, exit_status


def raising(error, cause=None):
  def command():
    raise error from cause

  return command


FULL = [OSError(number, os.strerror(number), "some/file") for number in (28, 122, 30, 27)]


@pytest.mark.parametrize("error", FULL, ids=lambda error: errno.errorcode[error.errno])
def test_a_full_disk_is_the_error_line_wherever_it_is_found(error, capsys):
  assert exit_status(raising(error)) == 2
  said = capsys.readouterr().err
  assert said.startswith(f"error: cannot write some/file ({error.strerror}); free some space")
  assert exit_status(raising(RuntimeError("INTERNAL: write failed"), error)) == 2
  assert exit_status(raising(ValueError(f"put: {os.strerror(28)} [tensorstore]"))) == 2


def test_other_failures_keep_their_traceback():
  for error in (OSError(2, "No such file"), ValueError("x"), BrokenPipeError(32, "Broken pipe")):
    with pytest.raises(type(error)):
      exit_status(raising(error))


def test_a_users_mistake_is_one_line(capsys):
  assert exit_status(raising(UserError("a\nb"))) == 2
  assert capsys.readouterr().err == "error: a b\n"
