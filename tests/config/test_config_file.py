"""Experiments by name or path: the user's own file first, then the one that came along."""

import pytest

from frozen_jax.config import config_file
from frozen_jax.config.config_file import experiments, find_config, first_lines, load_config
from frozen_jax.core.errors import UserError
from tests.processes import ROOT

MINE = (
  "from ml_collections import ConfigDict\n\ndef get_config(variant=''):\n  return ConfigDict()\n"
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """An empty current folder, outside the clone."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  "given",
  ["recursive", "recursive.py", "configs/recursive.py", "./configs/recursive.py"]
  + ["configs/recursive"],
)
def test_an_experiment_that_came_along_is_found_anywhere(elsewhere, given):
  assert find_config(given) == ROOT / "configs" / "recursive.py"
  assert "finetune" in load_config(f"{given}:smoke").stages


@pytest.mark.parametrize("given", ["recursive", "configs/recursive.py", "configs/recursive"])
def test_a_file_in_the_current_folder_goes_first(elsewhere, given):
  (elsewhere / "configs").mkdir()
  mine = elsewhere / "configs" / "recursive.py"
  mine.write_text(MINE)
  assert find_config(given).resolve() == mine
  assert find_config("lora") == ROOT / "configs" / "lora.py"


@pytest.mark.parametrize("given", ["mine.py", "mine", "{0}/mine.py", "{0}/mine", "~/mine.py"])
def test_a_file_of_the_users_own(elsewhere, monkeypatch, given):
  monkeypatch.setenv("HOME", str(elsewhere))
  (elsewhere / "mine.py").write_text(MINE)
  assert find_config(given.format(elsewhere)).resolve() == elsewhere / "mine.py"
  assert len(load_config(given.format(elsewhere))) == 0


def test_a_file_that_only_has_the_name_of_an_experiment_does_not_hide_it(elsewhere):
  (elsewhere / "recursive").write_text("a log")
  assert find_config("recursive") == ROOT / "configs" / "recursive.py"


@pytest.mark.parametrize(
  "given, message",
  [
    ("recusive", r"no such config: recusive; did you mean --config=recursive\?; there are: adap"),
    ("configs/promt_tuning.py", r"did you mean --config=prompt_tuning\?"),
    ("other/recursive.py", r"no such config: other/recursive.py; did you mean --config=recursive"),
    ("zzz", r"no such config: zzz; there are: adapters, .*textual_recursion$"),
  ],
)
def test_no_such_config(elsewhere, given, message):
  with pytest.raises(UserError, match=message):
    find_config(given)


def test_a_variant_may_have_the_address_of_a_file(elsewhere):
  text = (
    "from ml_collections import ConfigDict\ndef get_config(v):\n  return ConfigDict({'v': v})\n"
  )
  (elsewhere / "mine.py").write_text(text)
  assert load_config("mine:file=gs://bucket/a.jsonl").v == "file=gs://bucket/a.jsonl"


@pytest.mark.parametrize("given", ["gs://bucket/mine.py", "s3://bucket/mine.py:smoke"])
def test_a_config_on_a_store_is_refused_by_its_whole_path(given):
  path = given.removesuffix(":smoke")
  with pytest.raises(UserError, match=f"^{path} is on an object store.*; give a local path"):
    load_config(given)


def test_an_installed_package_has_them_in_a_folder_of_its_own(elsewhere, monkeypatch):
  inside = elsewhere / "site-packages" / "frozen_jax" / "configs"
  inside.mkdir(parents=True)
  (inside / "one.py").write_text(MINE)
  foreign = elsewhere / "site-packages" / "configs"
  foreign.mkdir()
  (foreign / "two.py").write_text(MINE)
  monkeypatch.setattr(config_file, "_PACKAGE", inside.parent)
  assert experiments() == {"one": inside / "one.py"}


def test_each_experiment_has_a_line_that_says_what_it_is(elsewhere):
  lines = first_lines()
  assert lines.keys() == {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert all(0 < len(line) <= 73 and line.endswith((".", "?")) for line in lines.values()), lines


def test_a_file_that_is_no_python_has_no_line(elsewhere):
  (elsewhere / "configs").mkdir()
  (elsewhere / "configs" / "broken.py").write_text("def (:\n")
  assert first_lines()["broken"] == ""
