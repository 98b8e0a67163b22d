"""A process that has imported the program, and forks: what runs in it starts at once.

`python -m tests.fork_server SOCKET`: each message on this socket, which is inherited, is a request
(`Request` as JSON) with four file descriptors: standard input, output and error of the new process,
and where its process id and then its exit status are written, a line each. Ends with its socket.

As `multiprocessing`'s server of this name, but the new process ends as an interpreter does, with
what is registered to be done at exit, and has pipes.
"""

import dataclasses
import gc
import json
import os
import runpy
import signal
import socket
import sys
import types

from frozen_jax.text.hidden_torch import hide_torch

PRELOADED = ("frozen_jax.run", "frozen_jax.run.train", "frozen_jax.run.predict")
MAX_REQUEST_BYTES = 2**18


@dataclasses.dataclass(frozen=True)
class Request:
  """arguments: of the interpreter: `-m MODULE`, `-c CODE` or a file, and what follows them."""

  arguments: list[str]
  cwd: str
  environment: dict[str, str]


def serve(requests: socket.socket) -> Request | None:
  """Forks a process for each request, in which it returns it; None at the end, in the server."""
  while True:
    message, handles, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
    if not message:
      return None
    if os.fork() == 0:
      requests.close()
      return _watched(Request(**json.loads(message)), *handles)
    for handle in handles:
      os.close(handle)


def _watched(request: Request, *handles: int) -> Request:
  """In a further fork: the request. This process says how that one ends, and ends itself."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  *pipes, reports = handles
  process = os.fork()
  if process == 0:
    os.close(reports)
    for number, pipe in enumerate(pipes):
      os.dup2(pipe, number)
      os.close(pipe)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    return request
  for pipe in pipes:
    os.close(pipe)
  os.write(reports, f"{process}\n".encode())
  status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
  os.write(reports, f"{status}\n".encode())
  os._exit(0)


def run(request: Request) -> None:
  """What `python ARGUMENTS` does in this folder and environment."""
  os.environ.clear()
  os.environ.update(request.environment)
  os.chdir(request.cwd)
  how, *rest = request.arguments
  sys.orig_argv[:] = [sys.executable, *request.arguments]
  if how == "-m":
    sys.path[0], sys.argv[:] = request.cwd, rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
  elif how == "-c":
    sys.path[0], sys.argv[:] = "", ["-c", *rest[1:]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(rest[0], "<string>", "exec"), main.__dict__)
  else:
    sys.path[0], sys.argv[:] = os.path.dirname(how), request.arguments
    runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
  hide_torch()  # as the program does before it imports these
  for module in PRELOADED:
    __import__(module)
  gc.collect()
  gc.freeze()
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that watch need not be waited for
  asked = serve(socket.socket(fileno=int(sys.argv[1])))
  if asked is not None:
    run(asked)
