"""Paths on stores: names, what is there, conditional creation, and what is said when it fails."""

import gzip
import importlib.util
import json
import pathlib
import re

import pytest

from frozen_jax.core import files, object_store, reading
from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import StoreError, UserError, exit_status
from frozen_jax.core.line_file import LineFile
from frozen_jax.core.object_store import StorePath, any_path
from frozen_jax.core.text_file import numbered_lines
from frozen_jax.core.user_path import local_path, user_path


@pytest.fixture
def folder(store, request, tmp_path, monkeypatch):
  """A folder of the test's own on the store, and a cache of its own."""
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  return user_path(f"{store.url}/{request.node.name}")


def test_names():
  path = any_path("gs://bucket//a/b.txt/")
  assert str(path) == "gs://bucket/a/b.txt"
  assert path == StorePath("gs://bucket") / "a" / "b.txt" == any_path(path)
  assert path != StorePath("s3://bucket/a/b.txt") and len({path, any_path(str(path))}) == 1
  assert (path.name, path.suffix, path.bucket) == ("b.txt", ".txt", "gs://bucket")
  assert path.parts == ("gs://bucket", "a", "b.txt")
  assert [str(one) for one in path.parents] == ["gs://bucket/a", "gs://bucket"]
  assert str(path.with_name("c")) == "gs://bucket/a/c"
  assert str(path.relative_to(any_path("gs://bucket"))) == "a/b.txt"
  assert path.parent.parent.parent == StorePath("gs://bucket")
  assert isinstance(any_path("a/b"), pathlib.Path)
  assert isinstance(user_path("~/x"), pathlib.Path)


def test_no_local_function_takes_one_for_a_folder():
  path = StorePath("gs://bucket/a")
  for act in (pathlib.Path, open, lambda one: pathlib.Path("x") / one):
    with pytest.raises(TypeError):
      act(path)
  with pytest.raises(UserError, match="gs://bucket/a is on an object store"):
    local_path(path)


@pytest.mark.parametrize("url", ["az://bucket/x", "http://host/x", "gs://", "s3:///key"])
def test_other_schemes_and_no_bucket(url):
  with pytest.raises(UserError, match="no store|no bucket"):
    user_path(url)


def test_the_cache_is_on_a_disk(monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", "gs://bucket/cache")
  with pytest.raises(UserError, match="on an object store"):
    cache_dir()


def test_what_is_there(folder):
  assert not folder.exists() and not folder.files()
  with pytest.raises(FileNotFoundError):
    list(folder.iterdir())
  (folder / "a" / "one.yaml").write_bytes(b"1")
  (folder / "two.txt").write_bytes(b"\xc3\xa4\n")
  (folder / "empty").write_bytes(b"")
  assert folder.is_dir() and folder.exists() and not folder.is_file()
  assert (folder / "two.txt").is_file() and not (folder / "tw").exists()
  assert [path.name for path in folder.iterdir()] == ["a", "empty", "two.txt"]
  assert [path.name for path in folder.rglob("*.yaml")] == ["one.yaml"]
  assert [stat.st_size for stat in folder.files().values()] == [1, 0, 3]
  assert (folder / "two.txt").read_text() == "ä\n"
  with (folder / "two.txt").open() as lines:
    assert list(lines) == ["ä\n"]
  before = (folder / "two.txt").stat()
  (folder / "two.txt").write_bytes(b"other")
  assert (folder / "two.txt").stat().tag != before.tag
  (folder / "two.txt").unlink()
  (folder / "two.txt").unlink(missing_ok=True)
  for act in (folder.stat, (folder / "two.txt").unlink, (folder / "two.txt").read_bytes):
    with pytest.raises(FileNotFoundError):
      act()


def test_an_object_is_created_once(folder):
  (folder / "new").create(b"1")
  with pytest.raises(FileExistsError):
    (folder / "new").create(b"2")
  assert (folder / "new").read_bytes() == b"1"


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\r\r", b"\n--", b"\0", b" "])
def test_every_byte_comes_back(end, folder, tmp_path):
  content, source, target = b"\xff\r\n\r" + end, tmp_path / "source", tmp_path / "target"
  source.write_bytes(content)
  (folder / "uploaded").upload(source)
  (folder / "written").write_bytes(content)
  for path in (folder / "uploaded", folder / "written"):
    path.download(target, len(content))
    assert path.read_bytes() == target.read_bytes() == content


def test_files_are_written_as_on_a_disk(folder):
  files.write_json(folder / "x.json", {"a": 1})
  files.write_lines(folder / "x.jsonl", [{"b": 2}])
  with pytest.raises(ZeroDivisionError), files.atomic_file(folder / "y") as temporary:
    temporary.write_bytes(b"half")
    raise ZeroDivisionError
  assert json.loads((folder / "x.json").read_text()) == {"a": 1}
  assert [path.name for path in folder.iterdir()] == ["x.json", "x.jsonl"]
  assert list((cache_dir() / "uploads").iterdir()) == []


def test_folders_are_put_in_the_place_of_what_is_there(folder):
  def fill(names, act, **more):
    with files.temporary_folder(folder) as temporary:
      for name in names:
        (temporary / name).parent.mkdir(exist_ok=True)
        (temporary / name).write_text(" ".join(names))
      act(temporary, folder, **more)

  files.claim_folder(folder)
  with pytest.raises(FileExistsError):
    files.claim_folder(folder)
  fill(["a", "b/c", "results.json"], files.put_folder)
  assert [str(one.relative_to(folder)) for one in folder.files()] == ["a", "b/c", "results.json"]
  fill(["a", "d"], files.put_folder)
  assert {one.name: one.read_text() for one in folder.files()} == {"a": "a d", "d": "a d"}
  with files.filled_folder(folder) as temporary:
    (temporary / "d").write_text("new")
  assert {one.name: one.read_text() for one in folder.files()} == {"a": "a d", "d": "new"}
  with files.filled_folder(folder, replaced=["[a]*"]) as temporary:
    (temporary / "d").write_text("new")
  assert [one.name for one in folder.files()] == ["d"]
  with files.atomic_folder(folder) as temporary:
    (temporary / "d").write_text("not this")
  assert (folder / "d").read_text() == "new"
  assert files.folder_bytes(folder) == 3


def test_until_all_is_uploaded_nothing_describes_it(folder, tmp_path, monkeypatch):
  for name in ("a", "results.json"):
    (folder / name).write_bytes(b"old")
    (tmp_path / "new").mkdir(exist_ok=True)
    (tmp_path / "new" / name).write_text("new")
  monkeypatch.setattr(StorePath, "upload", lambda *_: (_ for _ in ()).throw(StoreError("gone")))
  with pytest.raises(StoreError):
    files.upload_folder(tmp_path / "new", folder)
  assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_is_read_is_copied_once_and_anew_when_it_changes(folder, monkeypatch):
  path = folder / "rows.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"a": 1}\n'))
  assert [line for _, _, line in numbered_lines(path)] == [b'{"a": 1}\n']
  first = reading.local_file(path)
  with monkeypatch.context() as patched:
    patched.setattr(StorePath, "download", None)
    assert reading.local_file(path) == first
  path.write_bytes(gzip.compress(b'{"a": 2}\n'))
  assert [line for _, _, line in numbered_lines(path)] == [b'{"a": 2}\n']
  assert not first.exists()
  with pytest.raises(UserError, match="there is no file .*/none; check the path"):
    list(numbered_lines(folder / "none"))


def test_of_a_folder_what_is_wanted_is_copied(folder):
  for name in ("config.json", "deep/er/x", "weights.bin"):
    (folder / name).write_bytes(name.encode())
  copy = reading.local_folder(folder, lambda names: [one for one in names if "bin" not in one])
  found = sorted(str(one.relative_to(copy)) for one in copy.rglob("*") if one.is_file())
  assert found == ["config.json", "deep/er/x"]
  with pytest.raises(UserError, match="none of the files"):
    reading.local_folder(folder, lambda names: [])


def test_a_copy_that_is_cut_short_is_none(folder, monkeypatch):
  (folder / "x").write_bytes(b"12345")
  driver = object_store._file_system(folder.scheme)
  monkeypatch.setattr(driver, "get_file", lambda key, to, **_: pathlib.Path(to).write_bytes(b"12"))
  with pytest.raises(StoreError, match="2 of 5 bytes"):
    reading.local_file(folder / "x")
  assert not list(cache_dir().rglob("x"))


def test_lines_are_uploaded_now_and_then(folder, monkeypatch):
  lines = LineFile(folder / "m.jsonl")
  lines.append("1\n")
  lines.append("2\n")
  assert (folder / "m.jsonl").read_text() == "1\n"
  assert lines.read() == "1\n2\n"
  lines.flush()
  assert LineFile(folder / "m.jsonl").read() == "1\n2\n"
  again = LineFile(folder / "m.jsonl")
  again.replace("1\n")
  again.append("3\n")
  assert (folder / "m.jsonl").read_text() == "1\n3\n"


def test_lines_on_a_disk_are_there_at_once(tmp_path):
  lines = LineFile(tmp_path / "m.jsonl")
  lines.append("1\n")
  lines.append("2\n")
  assert (tmp_path / "m.jsonl").read_text() == lines.read() == "1\n2\n"
  lines.replace("1\n")
  lines.append("3\n")
  assert (tmp_path / "m.jsonl").read_text() == "1\n3\n"


def test_no_bucket(store, tmp_path):
  missing = user_path(f"{store.scheme}://nothing-here/run")
  assert not missing.exists() and not missing.files()
  for act in (files.check_writable, lambda path: files.write_bytes(path / "x", b"")):
    with pytest.raises(UserError, match=f"there is no bucket {store.scheme}://nothing-here"):
      act(missing)


class DefaultCredentialsError(Exception):
  __module__ = "google.auth.exceptions"


class NoCredentialsError(Exception):
  __module__ = "botocore.exceptions"


class ParamValidationError(Exception):
  __module__ = "botocore.exceptions"


class InvalidURL(ValueError):
  __module__ = "aiohttp.client_exceptions"


class Unreadable(json.JSONDecodeError):
  __module__ = "requests.exceptions"


class HttpError(Exception):
  __module__ = "gcsfs.retry"

  def __init__(self, code):
    super().__init__(f"status {code}")
    self.code = code


class ClientConnectorError(OSError):
  __module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(
  "error, status, said",
  [
    (DefaultCredentialsError("not found"), 2, "no credentials for gs://b .*gcloud auth"),
    (NoCredentialsError("Unable to locate"), 2, "no credentials for gs://b"),
    (HttpError(401), 2, "no permission for gs://b/x"),
    (HttpError(403), 2, "no permission for gs://b/x"),
    (PermissionError("Access Denied"), 2, "no permission for gs://b/x"),
    (OSError("Forbidden: https://storage\nmore"), 2, "no permission for gs://b/x"),
    (ParamValidationError("no\nbucket"), 2, "gs://b/x cannot be used .no bucket.; check the name"),
    (InvalidURL("http://h:p"), 2, "gs://b/x cannot be used .http://h:p.; .*EMULATOR_HOST"),
    (Unreadable("Expecting value", "", 0), 1, "gs://b fails .*Expecting value"),
    (HttpError(503), 1, "gs://b fails .*status 503.*run the same command again"),
    (ClientConnectorError("Cannot connect"), 1, "gs://b fails .*Cannot connect"),
    (TimeoutError(), 1, "gs://b fails .*TimeoutError"),
  ],
)
def test_what_is_said_when_a_driver_fails(error, status, said, monkeypatch, capsys):
  class Failing:
    def __getattr__(self, name):
      def fail(*_, **__):
        raise error

      return fail

  monkeypatch.setattr(object_store, "_file_system", lambda scheme: Failing())
  path = StorePath("gs://b/x")
  acts = (
    path.exists,
    path.read_bytes,
    path.files,
    lambda: path.create(b""),
    lambda: files.write_bytes(path, b""),
  )
  for act in acts:
    assert exit_status(act) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert re.search(said, lines[0]), lines


@pytest.mark.parametrize("endpoint", ["nonsense", "localhost:9000"])
def test_an_endpoint_that_is_no_address(endpoint, monkeypatch):
  pytest.importorskip("s3fs")
  monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
  object_store._file_system.cache_clear()
  with pytest.raises(UserError, match="s3://b/x cannot be used .*AWS_ENDPOINT_URL"):
    StorePath("s3://b/x").exists()
  object_store._file_system.cache_clear()


@pytest.mark.parametrize("text", [None, "no JSON"])
def test_a_file_of_credentials_that_is_none(text, tmp_path, monkeypatch):
  pytest.importorskip("gcsfs")
  file = tmp_path / "key.json"
  if text is not None:
    file.write_text(text)
  monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
  object_store._file_system.cache_clear()
  with pytest.raises(UserError, match="GOOGLE_APPLICATION_CREDENTIALS=.*key.json cannot be read"):
    StorePath("gs://b/x").exists()
  object_store._file_system.cache_clear()


@pytest.mark.parametrize("text", ["gs:/b/x", "gs:b/x", "s3:/b/x"])
def test_a_scheme_without_both_slashes_is_no_folder(text):
  with pytest.raises(UserError, match=f"{text} would be a folder here; a store is .*://b/x"):
    any_path(text)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
  class Wrong:
    def info(self, key):
      raise KeyError(key)

  monkeypatch.setattr(object_store, "_file_system", lambda scheme: Wrong())
  with pytest.raises(KeyError):
    StorePath("gs://b/x").exists()


@pytest.mark.parametrize("scheme, driver, extra", [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_an_extra_that_is_not_installed(scheme, driver, extra, monkeypatch):
  object_store._is_installed.cache_clear()
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: name != driver and find(name) or None
  )
  with pytest.raises(UserError, match=rf"needs {driver}; run pip install 'frozen_jax\[{extra}\]'"):
    user_path(f"{scheme}://bucket/run")
  object_store._is_installed.cache_clear()
