"""The floors of the design, kept true by the import graph: each folder imports from below only."""

import ast
import subprocess
import sys

import pytest

from tests.processes import ROOT

# Lowest first. Folders of one floor do not import each other. A new folder is entered here.
# "__init__" is frozen_jax/__init__.py, the public interface.
FLOORS = [
  {"core"},
  {"config"},
  {"sharding", "text"},
  {"backbones", "modules", "decoding", "data", "retrieval"},
  {"methods"},
  {"models"},
  {"training", "evaluation", "export"},
  {"pipelines"},
  {"run"},
  {"__init__"},
  {"main", "tools"},
  {"__main__"},
]
FLOOR = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
FLAGS = {"absl.flags", "ml_collections.config_flags"}  # main is their only reader
NOWHERE = {"torch", "tensorflow", "pickle"}
BELOW_RUN = {"ml_collections", "argparse", "configs"}  # the loop and what is below see no config
# The re-ranker is a network alongside the LM, not a method that a config names.
METHODS = {path.stem for path in (ROOT / "frozen_jax" / "methods").glob("[!_]*.py")} - {"re_ranker"}
IN_METHODS = {"optax", "orbax", "os", "pathlib", "shutil"}  # no optimizers, no files


def imported(source):
  """Every dotted name that the source imports, also inside functions: `a.b`, `a.b.c` for c of b."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def is_under(name, forbidden):
  return any(name == f or name.startswith(f"{f}.") for f in forbidden)


def forbidden_to(here, name):
  """Why the folder (or module at the top) `here` may not import `name`; None where it may."""
  first, *rest = name.split(".")
  if first == "":
    return "relative imports hide the floor: write frozen_jax. ..."
  if is_under(name, NOWHERE):
    return "the package runs without it"
  if is_under(name, FLAGS) and here != "main":
    return "main is the only reader of flags"
  if is_under(name, BELOW_RUN) and FLOOR[here] < FLOOR["run"] and here != "config":
    return "no config or flag is read below run/"
  if is_under(name, IN_METHODS) and here == "methods":
    return "a method touches no optimizer and no file"
  if first != "frozen_jax":
    return None
  there = rest[0] if rest and rest[0] in FLOOR else "__init__"
  if there != here and FLOOR[there] >= FLOOR[here]:
    return f"{there} is not below {here}"
  if (here, there) == ("run", "methods") and METHODS.intersection(rest[1:2]):
    return "run/ knows no method by name"
  return None


def package_files():
  return sorted((ROOT / "frozen_jax").rglob("*.py"))


@pytest.mark.parametrize("path", package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below(path):
  here = path.relative_to(ROOT / "frozen_jax").with_suffix("").parts[0]
  assert here in FLOOR, f"{here} stands on no floor: enter it in FLOORS"
  reasons = {name: forbidden_to(here, name) for name in imported(path.read_text())}
  assert {name: why for name, why in reasons.items() if why} == {}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(sources):
  """Module -> the modules of `sources` (name -> text) that it imports, also inside functions.

  `from a.b import c` is an import of a.b.c if that is a module, else of a.b. That the __init__ of a
  package runs before its modules does not count.
  """
  graph = {}
  for name, source in sources.items():
    graph[name] = set()
    for imported_name in imported(source):
      parent = imported_name.rpartition(".")[0]
      found = next((one for one in (imported_name, parent) if one in sources), None)
      if found and found != name:
        graph[name].add(found)
  return graph


def import_circles(graph):
  """The groups of modules that import each other, directly or by way of others."""

  def reachable(start):
    reached, left = set(), [start]
    while left:
      for name in graph[left.pop()] - reached:
        reached.add(name)
        left.append(name)
    return reached

  reached = {name: reachable(name) for name in graph}
  circles = {
    frozenset({name, *(other for other in reached[name] if name in reached[other])})
    for name in graph
    if name in reached[name]
  }
  return sorted(map(sorted, circles))


def test_the_package_has_no_import_circle():
  sources = {module_name(path): path.read_text() for path in package_files()}
  assert import_circles(import_graph(sources)) == []


def test_the_check_finds_circles():
  sources = {
    "p": "from p.a import x",
    "p.a": "def f():\n  import p.b",
    "p.b": "from p import c\nimport os",
    "p.c": "from p.a import f",
    "p.d": "from p.a import f\nfrom p.d import itself",
  }
  graph = import_graph(sources)
  assert graph["p.b"] == {"p.c"} and graph["p.d"] == {"p.a"}
  assert import_circles(graph) == [["p.a", "p.b", "p.c"]]


def test_every_folder_is_a_package():
  folders = {path.parent for path in package_files()}
  assert [f for f in folders if not (f / "__init__.py").is_file()] == [], "setup.py would omit them"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_a_config_brings_in_no_jax(path):
  program = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
  command = [sys.executable, "-c", program, str(path)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert {"jax", "flax", "torch", "tensorflow"}.isdisjoint(done.stdout.split())


def test_imports_do_not_start_jax():
  """`jax.distributed.initialize` comes after them, and has to come before JAX looks for devices."""
  files = sorted((ROOT / "frozen_jax").rglob("*.py"))
  names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
  program = f"""
import importlib
for name in {names!r}:
  importlib.import_module(name.removesuffix(".__init__"))
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize(
  "here, source",
  [
    ("core", "from frozen_jax.text import answers"),
    ("modules", "from frozen_jax.backbones import decoder"),
    ("training", "import frozen_jax.export.peft"),
    ("backbones", "def f():\n  import torch.nn"),
    ("training", "from absl import flags"),
    ("run", "from absl.flags import FLAGS"),
    ("training", "import ml_collections"),
    ("methods", "from optax import adam"),
    ("text", "from frozen_jax import load_frozen"),
    ("text", "from ..core import paths"),
    ("run", "from frozen_jax.methods import prompt_tuning"),
    ("run", "from frozen_jax.methods.prompt_tuning import PromptTuning"),
    ("run", "import frozen_jax.main"),
  ],
)
def test_the_check_sees_what_is_forbidden(here, source):
  assert all(forbidden_to(here, name) for name in imported(source))


@pytest.mark.parametrize(
  "here, source",
  [
    ("core", "import jax\nfrom frozen_jax.core import paths"),
    ("methods", "from frozen_jax.backbones import decoder\nimport jax.numpy as jnp"),
    ("run", "from frozen_jax import methods\nfrom frozen_jax.methods import METHODS"),
    ("run", "from frozen_jax.training.loop import fit"),
    ("__init__", "from frozen_jax.run import train"),
    ("main", "from absl import app, flags\nfrom frozen_jax import run\nimport os"),
    ("tools", "from frozen_jax import load_frozen"),
  ],
)
def test_the_check_lets_pass_what_is_allowed(here, source):
  assert not any(forbidden_to(here, name) for name in imported(source))
