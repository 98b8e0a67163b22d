"""What JAX does in its own threads when it loses a process or the coordinator: it calls us.

By default it ends the process there, with SIGABRT and a C++ stack, before any Python code runs. The
client of the coordination service takes a callback instead. In jaxlib 0.10 that cannot be called
from Python, where the type of its argument is unknown: a `std::bad_cast` leaves the thread and ends
in C++'s terminate handler. So we are that handler, too, for this exception alone.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

_BAD_CAST = b"St8bad_cast"  # the name that C++ gives to the type
_Handler = ctypes.CFUNCTYPE(None)
_kept: list[Any] = []  # handlers that C++ holds


@contextlib.contextmanager
def handled_by(handler: Callable[[], None]) -> Iterator[None]:
  """A client that is made meanwhile calls `handler` where it would end the process.

  handler: must not return. It is called in a thread of JAX's. Where this JAX has no such callback,
  everything stays as it is.
  """
  try:
    from jax._src.lib import _jax as native  # what jax.distributed makes its client with

    make = native.get_distributed_runtime_client
  except (ImportError, AttributeError):
    yield
    return
  _on_bad_cast(handler)
  native.get_distributed_runtime_client = functools.partial(
    make, missed_heartbeat_callback=lambda *status: handler()
  )
  try:
    yield
  finally:
    native.get_distributed_runtime_client = make


def _on_bad_cast(handler: Callable[[], None]) -> None:
  """Calls `handler` where a `std::bad_cast` would end the process; other exceptions end it."""
  try:
    library = ctypes.CDLL("libstdc++.so.6")
    set_terminate = library._ZSt13set_terminatePFvvE
    current_type = library.__cxa_current_exception_type
  except (OSError, AttributeError):  # another C++ library than GNU's
    return
  set_terminate.argtypes, set_terminate.restype = [_Handler], ctypes.c_void_p
  current_type.argtypes, current_type.restype = [], ctypes.POINTER(ctypes.c_char_p)

  def terminate() -> None:
    thrown = current_type()  # its second word points to the name
    if thrown and thrown[1] == _BAD_CAST:
      handler()
    elif before:
      _Handler(before)()

  _kept.append(_Handler(terminate))
  before = set_terminate(_kept[-1])
