"""The adapter folder: what is written comes back, and what is not whole is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.models import adapter_folder
from frozen_jax.models.adapter_folder import read_adapter, write_adapter

INFO = {
  "method": "neural_recursion",
  "model": "tiny",
  "frozen_fingerprint": "ab12",
  "options": {"passes": 2, "name": "Zürich"},
}


def a_tree(seed=0):
  draw = np.random.default_rng(seed)
  return {
    "prompt": {"vectors": jnp.asarray(draw.normal(size=(3, 4)), jnp.float32)},
    "connector": {
      "out": {"kernel": draw.normal(size=(4, 2)).astype(np.float32).T},  # not contiguous
      "gain": np.float32(0.5),
    },
  }


def test_round_trip_keeps_every_bit_and_the_info(tmp_path):
  folder = write_adapter(tmp_path / "new" / "adapter", a_tree(), INFO)
  tree, info = read_adapter(folder)
  assert info == INFO
  expected = paths.flatten(a_tree())
  found = paths.flatten(tree)
  assert list(found) == sorted(expected)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], np.asarray(leaf), strict=True)


def test_the_files_are_what_the_format_says(tmp_path):
  folder = write_adapter(tmp_path / "adapter", a_tree(), INFO)
  assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]
  description = json.loads((folder / "adapter.json").read_text())
  assert description["format_version"] == 1
  assert description["tensors"]["prompt/vectors"] == {"shape": [3, 4], "dtype": "float32"}
  keys = list(safetensors.numpy.load_file(folder / "adapter.safetensors"))
  assert sorted(keys) == ["connector/gain", "connector/out/kernel", "prompt/vectors"]


def test_the_same_tree_gives_the_same_bytes(tmp_path):
  one = write_adapter(tmp_path / "one", a_tree(), INFO)
  other = write_adapter(tmp_path / "other", dict(reversed(a_tree().items())), INFO)
  for name in ("adapter.json", "adapter.safetensors"):
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_an_adapter_is_replaced_and_other_files_stay(tmp_path):
  write_adapter(tmp_path, a_tree(), INFO)
  (tmp_path / "notes.txt").write_text("mine")
  write_adapter(tmp_path, a_tree(seed=1), INFO)
  tree, _ = read_adapter(tmp_path)
  np.testing.assert_array_equal(tree["prompt"]["vectors"], a_tree(seed=1)["prompt"]["vectors"])
  assert (tmp_path / "notes.txt").read_text() == "mine"
  assert len(list(tmp_path.iterdir())) == 3, "a temporary file was left after"


def test_a_failed_write_leaves_the_old_adapter_readable(tmp_path, monkeypatch):
  write_adapter(tmp_path, a_tree(), INFO)

  def full_disk(handle):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("frozen_jax.core.files.os.fsync", full_disk)
  with pytest.raises(UserError, match="No space left on device"):
    write_adapter(tmp_path, a_tree(seed=1), INFO)
  tree, _ = read_adapter(tmp_path)
  np.testing.assert_array_equal(tree["prompt"]["vectors"], a_tree()["prompt"]["vectors"])
  assert len(list(tmp_path.iterdir())) == 2, "a temporary file was left after"


def truncate(folder):
  path = folder / "adapter.safetensors"
  path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder):
  data = bytearray((folder / "adapter.safetensors").read_bytes())
  data[-1] ^= 1
  (folder / "adapter.safetensors").write_bytes(data)


def change_description(**changes):
  def change(folder):
    path = folder / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

  return change


@pytest.mark.parametrize(
  "damage, message",
  [
    (truncate, "truncated"),
    (flip_a_bit, "altered"),
    (lambda folder: (folder / "adapter.json").unlink(), "does not exist"),
    (lambda folder: (folder / "adapter.safetensors").unlink(), "does not exist"),
    (lambda folder: (folder / "adapter.json").write_text('{"format_'), "not JSON"),
    (lambda folder: (folder / "adapter.json").write_bytes(b"\xff\xfe"), "not JSON"),
    (lambda folder: (folder / "adapter.json").write_text("[]"), "format version None"),
    (change_description(format_version=99), "format version 99"),
    (change_description(tensors={}), "do not list the same tensors"),
    (lambda folder: (folder / "adapter.json").write_text('{"format_version": 1}'), "lacks method"),
  ],
)
def test_a_damaged_adapter_is_refused_in_one_line(tmp_path, damage, message):
  folder = write_adapter(tmp_path / "adapter", a_tree(), INFO)
  damage(folder)
  with pytest.raises(UserError, match=message) as error:
    read_adapter(folder)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "tree, info",
  [
    (a_tree(), {"method": "x", "model": "y"}),
    (a_tree(), {**INFO, "sha256": "mine"}),
    ({"a/b": np.zeros(1, np.float32)}, INFO),
    ({"layers": {0: np.zeros(1, np.float32)}}, INFO),
    ({"a": jnp.zeros(1, jnp.bfloat16)}, INFO),
  ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, tree, info):
  with pytest.raises(ValueError):
    write_adapter(tmp_path / "adapter", tree, info)
  assert not (tmp_path / "adapter").exists()


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    write_adapter(tmp_path / "file" / "adapter", a_tree(), INFO)
  with pytest.raises(UserError, match="cannot read"):
    (tmp_path / "adapter.json").mkdir()
    adapter_folder.read_adapter(tmp_path)
