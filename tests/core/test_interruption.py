import os
import signal
import threading

import pytest

from frozen_jax.core import interruption
from frozen_jax.core.errors import Interrupted


def test_interrupted_is_no_exception_that_a_broad_handler_takes():
  with pytest.raises(Interrupted, match="interrupted at step 3"):
    try:
      raise Interrupted(3)
    except Exception:
      pytest.fail("taken for a failure")


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_the_handler_is_called_and_the_one_before_comes_back(number):
  before, calls = [signal.getsignal(one) for one in interruption.SIGNALS], []
  with interruption.handled_by(lambda: calls.append("outer")):
    with interruption.handled_by(lambda: calls.append("inner")):
      os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
  assert calls == ["inner", "outer"]
  assert [signal.getsignal(one) for one in interruption.SIGNALS] == before


def test_outside_the_main_thread_nothing_is_installed():
  before, inside = signal.getsignal(signal.SIGTERM), []

  def work():
    with interruption.handled_by(lambda: None):
      inside.append(signal.getsignal(signal.SIGTERM))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert inside == [before]
