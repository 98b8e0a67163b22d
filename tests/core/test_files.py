"""Files and folders are written atomically, and what killed processes leave is deleted in time."""

import os

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.core.files import atomic_file, atomic_folder, filled_folder, folder_bytes


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
  path = tmp_path / "new" / "f"
  with atomic_file(path) as temporary:
    temporary.write_text("one")
    assert not path.exists()
  with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
    temporary.write_text("half")
    raise KeyboardInterrupt
  assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
  assert path.stat().st_mode & 0o777 == 0o644


def test_the_folder_that_was_there_first_stays(tmp_path):
  path = tmp_path / "d"
  with atomic_folder(path) as second:
    with atomic_folder(path) as first:
      (first / "f").write_text("first")
    (second / "f").write_text("second")
  assert (path / "f").read_text() == "first" and list(tmp_path.iterdir()) == [path]
  with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "e") as temporary:
    (temporary / "f").write_text("half")
    raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_a_user_error(tmp_path):
  (tmp_path / "file").write_text("")
  for atomic in (atomic_file, atomic_folder):
    with pytest.raises(UserError, match="cannot write"), atomic(tmp_path / "file" / "x"):
      pass


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
  left = [tmp_path / ".d.old", tmp_path / ".d.new", tmp_path / ".dd.old"]
  for folder in left:
    folder.mkdir()
    (folder / "f").write_text("half")
    if folder.name.endswith("old"):
      os.utime(folder, (0, 0))
  with atomic_folder(tmp_path / "d"):
    pass
  assert {path.name for path in tmp_path.iterdir()} == {".d.new", ".dd.old", "d"}


@pytest.mark.parametrize("name", ["a.txt", "b"])
def test_a_name_that_is_taken_by_another_kind_changes_nothing(tmp_path, name):
  (tmp_path / "there").mkdir()
  (tmp_path / "there" / "a-old").write_text("old")
  taken = tmp_path / "there" / name
  taken.mkdir() if name == "a.txt" else taken.write_text("old")
  said = pytest.raises(UserError, match=f"{name} is a f.*, and a f.* move it away")
  with said, filled_folder(tmp_path / "there", replaced=["a-*"]) as new:
    (new / "a.txt").write_text("new")
    (new / "b").mkdir()
  assert {one.name for one in (tmp_path / "there").iterdir()} == {"a-old", name}
  taken.rmdir() if name == "a.txt" else taken.unlink()
  (tmp_path / "there" / "a-folder").mkdir()
  with filled_folder(tmp_path / "there", replaced=["a-*"]) as new:
    (new / "a.txt").write_text("new")
  assert {one.name for one in (tmp_path / "there").iterdir()} == {"a-folder", "a.txt"}
  assert folder_bytes(tmp_path / "there" / "a.txt") == 3
