"""Compiled programs go to the store of a workdir, and come from there to another machine."""

import contextlib
import logging
import time

import pytest

from frozen_jax.core import stored_programs
from frozen_jax.core.compilation_cache import enable_compilation_cache, own_folder
from frozen_jax.core.errors import StoreError
from frozen_jax.core.object_store import StorePath
from frozen_jax.core.user_path import user_path
from tests.processes import COMPILED


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """`machine(name)`: from here on this is another machine, with an empty cache -> the folder."""

  def become(name):
    monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / name))
    monkeypatch.delenv(COMPILED, raising=False)
    enable_compilation_cache()
    monkeypatch.setenv(COMPILED, str(own_folder()))
    return own_folder()

  for name in ("JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"):
    monkeypatch.setenv(name, "")  # so that what is set here does not stay
  return become


@pytest.fixture
def workdir(store, request):
  return user_path(f"{store.url}/{request.node.name}")


def compiled(folder, name, used=True):
  """As JAX writes a program; used: and then the time of its use."""
  (folder / f"{name}-cache").write_bytes(name.encode())
  if used:
    (folder / f"{name}-atime").write_bytes(time.time_ns().to_bytes(8, "little"))


def stored(workdir):
  return sorted(path.name for path in (workdir / "compiled").files())


def test_what_a_run_uses_is_found_on_another_machine(machine, workdir):
  one = machine("one")
  compiled(one, "of_another_run")
  time.sleep(0.01)
  with stored_programs.stored_programs(workdir, uploads=True):
    compiled(one, "step")
    compiled(one, "half_written", used=False)
  assert stored(workdir) == ["step-cache"]

  two = machine("two")
  compiled(two, "own")
  with stored_programs.stored_programs(workdir, uploads=True):
    assert (two / "step-cache").read_bytes() == b"step"
    assert (two / "step-atime").read_bytes() == bytes(8), "JAX must find it; it was used by nobody"
    compiled(two, "more")
  assert stored(workdir) == ["more-cache", "step-cache"]
  assert not [path for path in two.iterdir() if path.name.startswith(".")]


def test_it_is_uploaded_meanwhile_and_once(machine, workdir, monkeypatch):
  """So that a run that is killed leaves it."""
  monkeypatch.setattr(stored_programs, "UPLOAD_EVERY", 0.02)
  folder, uploaded, upload = machine("one"), [], StorePath.upload
  monkeypatch.setattr(StorePath, "upload", lambda *given: uploaded.append(given) or upload(*given))
  with contextlib.suppress(KeyError), stored_programs.stored_programs(workdir, uploads=True):
    compiled(folder, "step")
    end = time.monotonic() + 20
    while not stored(workdir) and time.monotonic() < end:
      time.sleep(0.01)
    assert stored(workdir) == ["step-cache"]
    time.sleep(0.1)
    raise KeyError
  assert len(uploaded) == 1


def test_other_hosts_fetch_and_upload_nothing(machine, workdir):
  (workdir / "compiled" / machine("one").name / "step-cache").write_bytes(b"step")
  folder = machine("two")
  with stored_programs.stored_programs(workdir, uploads=False):
    assert (folder / "step-cache").exists()
    compiled(folder, "more")
  assert stored(workdir) == ["step-cache"]


@pytest.mark.parametrize("name", ["files", "upload"])
def test_a_store_that_fails_is_said_once_and_hinders_nothing(
  machine, workdir, monkeypatch, caplog, name
):
  caplog.set_level(logging.WARNING, logger="frozen_jax")
  folder, done = machine("one"), []

  def fail(*_):
    raise StoreError("gs://runs fails (503)")

  monkeypatch.setattr(StorePath, name, fail)
  with stored_programs.stored_programs(workdir, uploads=True):
    compiled(folder, "step")
    done.append(1)
  (said,) = [record.getMessage() for record in caplog.records]
  assert said == "what is compiled is not kept on the store: gs://runs fails (503)" and done


def test_a_workdir_on_a_disk_and_a_folder_of_the_users_own_stay_as_they_are(
  machine, workdir, monkeypatch, tmp_path
):
  machine("one")
  with stored_programs.stored_programs(tmp_path / "run", uploads=True):
    pass
  assert not (tmp_path / "run").exists()
  monkeypatch.setenv(COMPILED, str(tmp_path / "mine"))
  monkeypatch.setattr(StorePath, "files", None)
  with stored_programs.stored_programs(workdir, uploads=True):
    pass
