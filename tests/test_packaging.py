"""What is installed works from any folder: the modules, the experiments, the command."""

import pathlib
import subprocess
import sys

import pytest

import frozen_jax
from tests.processes import ROOT, environment

pytestmark = pytest.mark.program


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The folder that a wheel unpacks to."""
  folder = tmp_path_factory.mktemp("built")
  command = [sys.executable, "setup.py", "-q", "build", f"--build-base={folder / 'base'}"]
  command += [f"--build-lib={folder / 'lib'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return folder / "lib"


@pytest.fixture
def installed(built, tmp_path):
  """`installed(*arguments)`: Python in an empty folder, with the built package alone."""

  def run(*arguments):
    return subprocess.run(
      [sys.executable, *arguments],
      cwd=tmp_path,
      env=environment(PYTHONPATH=str(built), PYTHONSAFEPATH="1"),
      capture_output=True,
      text=True,
    )

  return run


def files(folder, ending="*.py"):
  return {str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob(ending)}


def test_everything_is_built(built):
  of_package = {f"frozen_jax/{name}" for name in files(ROOT / "frozen_jax")}
  of_configs = {f"frozen_jax/configs/{name}" for name in files(ROOT / "configs")}
  assert files(built) == of_package | of_configs
  assert files(built, "*.yaml") == {
    f"frozen_jax/{name}" for name in files(ROOT / "frozen_jax", "*.yaml")
  }


def test_the_version_is_said_in_one_place():
  command = [sys.executable, "setup.py", "--version"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.split()[-1] == frozen_jax.__version__, done.stderr


@pytest.mark.parametrize("module", ["frozen_jax", "frozen_jax.main"])
def test_the_command_finds_its_experiments_in_an_empty_folder(installed, built, module):
  listed = installed("-m", module, "--help")
  assert listed.returncode == 0, listed.stderr
  for path in (ROOT / "configs").glob("*.py"):
    assert f"\n  {path.stem} " in listed.stdout
  assert max(map(len, listed.stdout.splitlines())) <= 100
  found = installed(
    "-c",
    "import sys, frozen_jax; from frozen_jax.config.config_file import find_config\n"
    "print(frozen_jax.__file__, find_config('recursive'), find_config('configs/lora.py'))",
  )
  folder = built / "frozen_jax"
  expected = [folder / "__init__.py", folder / "configs/recursive.py", folder / "configs/lora.py"]
  assert found.stdout.split() == [str(path) for path in expected], found.stderr


def test_version(installed):
  assert (
    installed("-m", "frozen_jax", "--version").stdout == f"frozen_jax {frozen_jax.__version__}\n"
  )


def test_without_torch_nothing_is_said_about_it(installed):
  hidden = (
    "import importlib.util as util; find = util.find_spec;"
    "util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest);"
  )
  seen = installed("-c", hidden + "import transformers")
  assert "PyTorch was not found" in seen.stderr
  done = installed("-c", hidden + "import frozen_jax.text.tokenizer")
  assert (done.returncode, done.stderr) == (0, "")
