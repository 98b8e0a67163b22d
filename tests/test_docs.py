"""What the pages name exists: paths, dotted names, links; and the front pages stay short."""

import importlib
import re

import pytest

from frozen_jax.config.overrides import known_keys
from frozen_jax.pipelines.table import PIPELINES
from frozen_jax.run.defaults import RUN_KEYS, defaults
from frozen_jax.run.settings import with_defaults
from tests.processes import ROOT
from tests.test_imports import FLOOR

PAGES = [ROOT / name for name in ("README.md", "BUILD_NOTES.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FORBIDDEN = {"utils.py"}  # named as what there is not
MOST_LINES = {"README.md": 150, "BUILD_NOTES.md": 300}
PATH = re.compile(r"(?<![\w/.:-])((?:[\w.-]+/)*[\w-]+\.py)\b")
TEST = re.compile(r"([\w/]+\.py)::(\w+)")
DOTTED = re.compile(r"(?<![\w./-])frozen_jax(?:\.\w+)+")
KEY = re.compile(r"--config\.([a-z_]+(?:\.[a-z_]+)*)")
LINK = re.compile(r"\]\(([^)\s]+)\)")

page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def found(path):
  """The files of the repository that a path of a page names.

  `backbones/x.py` is short for the package's, a name without folders may be anywhere; NAME in it
  stands for any.
  """
  pattern = path.replace("NAME", "*")
  if "/" in path:
    return [file for place in (".", "frozen_jax") for file in (ROOT / place).glob(pattern)]
  places = [ROOT / place for place in ("frozen_jax", "tests", "configs", "benchmarks")]
  return [*ROOT.glob(pattern), *(file for place in places for file in place.rglob(pattern))]


def resolves(name):
  """Whether a dotted name is a module of the package, or is found in one."""
  parts = name.split(".")
  for length in range(len(parts), 0, -1):
    try:
      value = importlib.import_module(".".join(parts[:length]))
    except ModuleNotFoundError:
      continue
    for attribute in parts[length:]:
      if not hasattr(value, attribute):
        return False
      value = getattr(value, attribute)
    return True
  return False


def links(text):
  """The relative links of a page, without the places within pages that they point to."""
  targets = (target.partition("#")[0] for target in LINK.findall(text))
  return [target for target in targets if target and "://" not in target]


@page
def test_every_path_exists(page):
  named = set(PATH.findall(page.read_text())) - FORBIDDEN
  assert sorted(path for path in named if not found(path)) == []


@page
def test_every_test_exists(page):
  missing = [
    f"{path}::{name}"
    for path, name in TEST.findall(page.read_text())
    if not any(f"def {name}(" in file.read_text() for file in found(path))
  ]
  assert missing == []


@page
def test_every_config_key_exists(page):
  config = defaults()
  config.update({section: {} for section in PIPELINES})
  known = known_keys(with_defaults(config)).keys()
  is_known = lambda key: key in known or any(one.startswith(f"{key}.") for one in known)
  keys = [key for key in KEY.findall(page.read_text()) if not key.startswith("stages")]
  assert [key for key in keys if not is_known(key)] == []


def test_every_key_of_a_run_is_on_the_page_of_the_command_line():
  text = (ROOT / "docs" / "command_line.md").read_text()
  sections = {key.partition(".")[0] for key in known_keys(with_defaults(defaults())) if "." in key}
  missing = [name for name in sections | set(PIPELINES) if not re.search(rf"`{name}\.", text)]
  assert missing == [] and [key for key in RUN_KEYS if f"`{key}`" not in text] == []


@page
def test_every_dotted_name_exists(page):
  names = dict.fromkeys(DOTTED.findall(page.read_text()))
  assert [name for name in names if not resolves(name)] == []


@page
def test_every_link_resolves(page):
  assert [one for one in links(page.read_text()) if not (page.parent / one).exists()] == []


def test_the_checks_see_what_is_not_there():
  text = "`frozen_jax/core/no_such.py`, `core/paths.py`, frozen_jax.core.no_such, [x](no.md#y)"
  assert [bool(found(path)) for path in PATH.findall(text)] == [False, True]
  assert not any(resolves(name) for name in DOTTED.findall(text)) and links(text) == ["no.md"]
  assert resolves("frozen_jax.core.errors.UserError") and resolves("frozen_jax.load_adapter")


@pytest.mark.parametrize("name", MOST_LINES)
def test_the_front_pages_stay_short(name):
  assert len((ROOT / name).read_text().splitlines()) <= MOST_LINES[name]


def test_every_page_is_reached_from_the_front_page():
  reached, left = set(), [ROOT / "README.md"]
  while left:
    current = left.pop()
    if current not in reached:
      reached.add(current)
      targets = ((current.parent / one).resolve() for one in links(current.read_text()))
      left += [target for target in targets if target.suffix == ".md"]
  assert [path for path in PAGES if path not in reached] == []


def test_the_table_of_floors_is_that_of_the_import_check():
  text = (ROOT / "docs" / "architecture.md").read_text()
  rows = re.findall(r"^\| (\d) \| (.*?) \|", text, flags=re.MULTILINE)
  number = {
    folder.removesuffix(".py"): int(floor)
    for floor, folders in rows
    for folder in re.findall(r"`(\w+(?:\.py)?)/?`", folders)
  }
  assert number.keys() == FLOOR.keys() - {"__init__"}
  by_floor = sorted(number, key=lambda folder: FLOOR[folder])
  assert [number[folder] for folder in by_floor] == sorted(number.values())
