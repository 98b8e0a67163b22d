"""The processes of a run watch each other: where one is lost the others end, and say which.

Every process keeps a TCP connection to process 0, the coordinator. The kernel closes it when a
process ends, however that ends, and finds out by keep-alive probes that a machine is gone, so no
thread of Python has to send heartbeats in time. A process that ends by itself says so before. JAX's
own heartbeats (`hosts.HEARTBEAT_SECONDS`) remain, for a process that hangs; what JAX would do then
is handled here as well (`sharding.native_errors`).
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from frozen_jax.core import files
from frozen_jax.core.errors import Interrupted, UserError
from frozen_jax.sharding import native_errors

PROBE_AFTER, PROBE_EVERY, PROBES = 10, 5, 3  # seconds, seconds, count: a silent machine is lost
VERDICT_SECONDS = PROBE_AFTER + PROBES * PROBE_EVERY + 5  # until a lost machine is known
MOMENT = 2.0  # seconds, until a killed process is known
GRACE_SECONDS = 15.0  # in which all processes may end of one and the same error
ENDED, FAILED, LOST = "ended", "failed", "lost"  # kinds of messages: of a process that ...
_CONNECT_SECONDS = 60
_MAX_LINE = 4096
# What a collective, a barrier or a connection raises in which another process takes no part.
_OF_OTHERS = (RuntimeError, ConnectionError, TimeoutError)

_LOG = logging.getLogger(__name__)
_ADDRESS = "frozen_jax/peers"  # in the coordination service's store
_watch: "_Watch | None" = None


class _Process(NamedTuple):
  index: int
  host: str

  def __str__(self) -> str:
    return f"process {self.index} (host {self.host})"


def coordinator_errors_noted() -> contextlib.AbstractContextManager[None]:
  """A context for `jax.distributed.initialize`: what JAX finds lost later on is said here."""
  return native_errors.handled_by(_jax_lost_one)


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """Within it this process ends, with exit status 1 and one `error:` line, where another is lost.

  So it does some seconds after another has ended by an error of its own, unless it ends by itself.
  For programs whose `jax.distributed` is initialised; does nothing with one process. An error that
  a lost process may be the cause of is held back until that is known.
  """
  from jax._src import distributed  # the coordination service's client has no public name

  global _watch
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    yield
    return
  _watch = watch = _connected(state)
  try:
    yield
  except Interrupted:
    watch.say_goodbye(FAILED, "it was interrupted")
    watch.let_others_end()
    raise
  except UserError as error:
    watch.say_goodbye(FAILED, str(error))
    watch.let_others_end()
    raise
  except BaseException as error:
    if isinstance(error, Exception):  # a collective may have raised it, for another's sake
      watch.wait_for_verdict(VERDICT_SECONDS if isinstance(error, _OF_OTHERS) else MOMENT)
    watch.say_goodbye(FAILED, f"{type(error).__name__}: {error}")
    watch.let_others_end()
    raise
  watch.say_goodbye(ENDED)


def end(message: str) -> None:
  """Ends this process with exit status 2 and one `error:` line, and so the others.

  For a thread that finds a mistake of the user's while the main one hangs.
  """
  watch = _watch or _Watch(_Process(-1, ""), 0)
  if watch.reports():
    watch.say_goodbye(FAILED, message)
    watch.let_others_end()
    _exit(message, 2)


def is_watched() -> bool:
  """Whether there are others, whom a process that fails must not wait for when it ends."""
  return _watch is not None


class _Watch:
  """What every process does. By itself it is connected to none: JAX's heartbeats alone remain."""

  def __init__(self, me: _Process, count: int):
    self.me, self.count = me, count
    self._reporting = threading.Lock()
    self._fails = False  # or is interrupted: it ends by itself
    self._waiting = threading.Event()  # the main thread has nothing left to do but to wait

  def say_goodbye(self, kind: str, message: str = "") -> None:
    """Tells the others that this process ends by itself; of one that fails nothing else is said."""
    self._fails = kind != ENDED
    self._say({"kind": kind, "process": self.me, "message": message[: _MAX_LINE // 4]})

  def _say(self, message: dict[str, Any]) -> None:
    """Sends a message to the others."""

  def let_others_end(self) -> None:
    """Waits, as process 0, without which JAX ends the others, until they have ended."""

  def wait_for_verdict(self, seconds: float) -> None:
    """Lets this process end by what befell another, as soon as that is known."""
    self._waiting.set()
    time.sleep(seconds)

  def is_lost(self, process: _Process) -> None:
    """Ends this process, for that one has vanished."""
    self.end(
      f"{process} was lost: it was killed, or its machine is down or out of reach; start all"
      f" {self.count} processes again with the same command, a training goes on from its last"
      " checkpoint"
    )

  def has_failed(self, process: _Process, message: str) -> None:
    """Ends this process where it does not end by itself, for that one has ended by an error."""

    def act() -> None:
      self._waiting.wait(GRACE_SECONDS)
      self.end(
        f"{process} has ended by itself: {message.rstrip('.')}; see to that, then start all"
        f" {self.count} processes again with the same command"
      )

    threading.Thread(target=act, daemon=True).start()

  def end(self, message: str) -> None:
    """Ends this process with one line, unless it is about to end by an error of its own."""
    if self.reports() and not self._fails:
      _exit(message, 1)

  def reports(self) -> bool:
    """Whether the caller is the first to say by what this process ends: one line is enough."""
    return self._reporting.acquire(blocking=False)


class _Coordinator(_Watch):
  """Process 0: the others are connected to it, and it tells all of them what befell one."""

  def __init__(self, me: _Process, count: int):
    super().__init__(me, count)
    self._server = socket.create_server(("", 0), backlog=count)
    self._token = secrets.token_hex(16)
    self._others: dict[int, tuple[_Process, socket.socket]] = {}
    self._changing = threading.Lock()
    self._gone = 0  # how many of the others
    self._said: dict[str, Any] = {}
    threading.Thread(target=self._accept, daemon=True).start()

  def address(self) -> str:
    """JSON, for the others: where they connect to, and this host's name."""
    return json.dumps([self._server.getsockname()[1], self._token, self.me.host])

  def _say(self, message: dict[str, Any]) -> None:
    self._said = message
    self._tell(message)

  def let_others_end(self) -> None:
    end = time.monotonic() + GRACE_SECONDS + 2
    while self._gone < self.count - 1 and time.monotonic() < end:
      time.sleep(0.05)

  def _accept(self) -> None:
    while True:
      connection, _ = self._server.accept()
      threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

  def _serve(self, connection: socket.socket) -> None:
    """Receives what one other process says, until it is gone."""
    _probe(connection)
    lines = _messages(connection)
    hello = next(lines, {})
    if hello.get("token") != self._token:
      connection.close()
      return
    other = _Process(*hello["process"])
    with self._changing:
      self._others[other.index] = other, connection
    if self._said:  # before that process was connected
      _send(connection, self._said)
    goodbye = next(lines, None)
    if goodbye is None:
      self._tell({"kind": LOST, "process": other})
      self.is_lost(other)
    elif goodbye["kind"] != ENDED:
      self._tell(goodbye)
      self.has_failed(other, goodbye["message"])
    next(lines, None)
    with self._changing:
      del self._others[other.index]
      self._gone += 1

  def _tell(self, message: dict[str, Any]) -> None:
    with self._changing:
      connections = [connection for _, connection in self._others.values()]
    for connection in connections:
      _send(connection, message)


class _Worker(_Watch):
  """Any other process: connected to process 0 alone."""

  def __init__(self, me: _Process, count: int, connection: socket.socket, token: str, first: str):
    super().__init__(me, count)
    self._connection, self._first = connection, _Process(0, first)
    _probe(connection)
    _send(connection, {"token": token, "process": me})
    threading.Thread(target=self._listen, daemon=True).start()

  def _say(self, message: dict[str, Any]) -> None:
    _send(self._connection, message)

  def _listen(self) -> None:
    for message in _messages(self._connection):
      process = _Process(*message["process"])
      if message["kind"] == LOST:
        self.is_lost(process)
      elif message["kind"] == ENDED:
        return
      elif process.index != self.me.index:
        self.has_failed(process, message["message"])
        if process.index == 0:
          return
    self.is_lost(self._first)


def _exit(message: str, status: int) -> None:
  with contextlib.suppress(OSError):
    files.remove_unfinished()
  with contextlib.suppress(OSError):
    os.write(2, f"error: {' '.join(message.split())}\n".encode())
  os._exit(status)


def _connected(state: Any) -> _Watch:
  """Connects this process; state: `jax.distributed`'s."""
  me, count = _Process(state.process_id, socket.gethostname()), state.num_processes
  if me.index == 0:
    coordinator = _Coordinator(me, count)
    state.client.key_value_set(_ADDRESS, coordinator.address(), allow_overwrite=True)
    return coordinator
  given = state.client.blocking_key_value_get(_ADDRESS, _CONNECT_SECONDS * 1000)
  port, token, first = json.loads(given)
  host = state.coordinator_address.rpartition(":")[0].strip("[]")
  try:
    connection = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
  except OSError as error:
    _LOG.warning(
      "%s cannot reach port %d of %s (%s): where a process is lost it will not say which",
      *(me, port, host, error),
    )
    return _Watch(me, count)
  connection.settimeout(None)
  return _Worker(me, count, connection, token, first)


def _jax_lost_one() -> None:
  """Called in a thread of JAX's instead of ending the process; does not return."""
  if _watch is not None:
    time.sleep(GRACE_SECONDS + 2)  # who was lost is said meanwhile, where that is known
  watch = _watch or _Watch(_Process(-1, ""), 0)
  watch.end(
    "another process of this run does not answer any more; start all processes again with the same"
    " command, a training goes on from its last checkpoint"
  )
  while True:  # the process is about to end by an error of its own
    time.sleep(GRACE_SECONDS)


def _probe(connection: socket.socket) -> None:
  """Has the kernel find out when the machine at the other end is gone."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  options = {
    "TCP_KEEPIDLE": PROBE_AFTER,
    "TCP_KEEPINTVL": PROBE_EVERY,
    "TCP_KEEPCNT": PROBES,
    "TCP_USER_TIMEOUT": 1000 * (PROBE_AFTER + PROBES * PROBE_EVERY),
  }
  for name, value in options.items():
    if hasattr(socket, name):  # not on every system
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # it is gone, which its reader notices
    connection.sendall(f"{json.dumps(message)}\n".encode())


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
  """What the other end says, a JSON object a line, until it is gone."""
  with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
    while line := lines.readline(_MAX_LINE):
      if not isinstance(message := json.loads(line), dict):
        return
      yield message
