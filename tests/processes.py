"""The processes that tests start, and their environments; the flags of XLA and the compiled
programs of all tests.

Imports no jax: `conftest.py` sets these variables before anything does.
"""

import functools
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).parents[1]

# After so many seconds a process that a test waits for hangs: slow, busy machines take minutes.
HANGS_AFTER = 600

# Tiny models spend their time in the compiler. These flags halve it (BUILD_NOTES).
QUICK_COMPILE = (
  "--xla_backend_optimization_level=0"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)


# A process that reads an entry while another one writes it says so, and compiles.
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry"
COMPILED = "JAX_COMPILATION_CACHE_DIR"
MAX_COMPILED_BYTES = 10**9  # all tests write a tenth of it


def share_compiled(folder=ROOT / ".pytest_cache" / "compiled"):
  """Has this process, all that it starts and later ones share what they compile, in this folder.

  Not where the variable is set: in a worker of pytest-xdist, or by the user. A folder that has
  grown too large is emptied.
  """
  if COMPILED in os.environ:
    return
  if folder.is_dir() and sum(path.stat().st_size for path in folder.iterdir()) > MAX_COMPILED_BYTES:
    shutil.rmtree(folder)
  os.environ |= {
    COMPILED: str(folder),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "PYTHONWARNINGS": ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), HALF_WRITTEN))),
  }


def xla_flags(devices):
  """For this number of simulated CPU devices."""
  return f"{QUICK_COMPILE} --xla_force_host_platform_device_count={devices}"


def environment(devices=1, **variables):
  """This process's environment, but with CPU devices of the new process's own number."""
  own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices), "PYTHONPATH": str(ROOT)}
  return os.environ | own | variables


def cluster(count=2):
  """The variables of each of `count` processes on this machine that form one JAX program."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  shared = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(count)}
  return [shared | {"PROCESS_ID": str(process)} for process in range(count)]


class Process:
  """A Python process in text mode, as `subprocess.Popen` has it, forked by the fork server.

  It need not import the program anew, which takes longer than many a run in it.
  """

  def __init__(self, arguments, cwd, environment):
    self.args, self.returncode = [sys.executable, *map(str, arguments)], None
    own = {"arguments": self.args[1:], "cwd": str(cwd), "environment": dict(environment)}
    (given, write), (out, output), (err, errors), (reports, report) = (os.pipe() for _ in range(4))
    handles = given, output, errors, report
    socket.send_fds(_fork_server(), [json.dumps(own).encode()], handles)
    for handle in handles:
      os.close(handle)
    self.stdin = os.fdopen(write, "w")
    self.stdout, self.stderr, self._reports = map(os.fdopen, (out, err, reports))
    self.pid = int(self._reports.readline())

  def wait(self, timeout=None):
    """Its exit status, as soon as it has ended."""
    if self.returncode is None:
      if not select.select([self._reports], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired(self.args, timeout)
      self.returncode = int(self._reports.readline())
    return self.returncode

  def poll(self):
    """Its exit status, or None as long as it runs."""
    try:
      return self.wait(0)
    except subprocess.TimeoutExpired:
      return None

  def communicate(self, input=None, timeout=None):  # noqa: A002 (Popen's name)
    """(standard output, standard error), to their ends."""
    found = {}
    readers = [
      threading.Thread(target=lambda pipe=pipe: found.update({pipe: pipe.read()}), daemon=True)
      for pipe in (self.stdout, self.stderr)
    ]
    for reader in readers:
      reader.start()
    if self.stdin:
      if input:
        self.stdin.write(input)
      self.stdin.close()
    for reader in readers:
      reader.join(timeout)
      if reader.is_alive():
        raise subprocess.TimeoutExpired(self.args, timeout)
    self.wait(timeout)
    return found[self.stdout], found[self.stderr]

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def terminate(self):
    self.send_signal(signal.SIGTERM)

  def kill(self):
    self.send_signal(signal.SIGKILL)


@functools.cache
def _fork_server():
  """The socket on which this process's own server (`fork_server.py`) takes requests.

  jaxlib reads its log level when it is imported; it is that of a run of several processes.
  """
  ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  number = theirs.fileno()
  subprocess.Popen(
    [sys.executable, "-m", "tests.fork_server", str(number)],
    cwd=ROOT,
    env=environment(TF_CPP_MIN_LOG_LEVEL="3"),
    pass_fds=[number],
  )
  theirs.close()
  return ours


def start(*arguments, devices=1, cwd=ROOT, anew=False, **variables):
  """Starts `python ARGUMENTS` with these environment variables besides.

  anew: in an interpreter of its own, which has yet to import everything: where that is what
  matters, or where JAX's own variables or PYTHONPATH differ from those of this process.
  """
  own = environment(devices, **variables)
  if not anew:
    return Process(arguments, cwd, own)
  pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)], cwd=cwd, env=own, text=True, **pipes
  )
