"""The lines of docs/exports.md restore the trained tree with Orbax alone."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import filled_folder
from frozen_jax.export.manifest import read_manifest
from frozen_jax.export.orbax_tree import write_orbax
from tests.export.conftest import on_the_page, tuned

SIX_LINES = on_the_page("ocp.load(")
SAVE = """
import sys, numpy
leaves = jax.tree.leaves_with_path(tree["trained"])
numpy.savez("leaves", **{"/".join(key.key for key in path): leaf for path, leaf in leaves})
assert "frozen_jax" not in sys.modules
"""


def write(target, model):
  with filled_folder(target) as new:
    write_orbax(new, model)


@pytest.mark.parametrize("name", ["prompt_tuning", "neural_recursion", "lora"])
def test_orbax_restores_what_was_trained(lm, tmp_path, name):
  model = tuned(lm, name)
  write(tmp_path / "my_tree", model)
  lines = f"{SIX_LINES}{SAVE}"
  assert len([line for line in SIX_LINES.splitlines() if line]) <= 6
  command = [sys.executable, "-c", lines]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  restored, wanted = dict(np.load(tmp_path / "leaves.npz")), paths.flatten(model.trained)
  assert restored.keys() == wanted.keys()
  for path, leaf in wanted.items():
    np.testing.assert_array_equal(restored[path], leaf)
  about = read_manifest(tmp_path / "my_tree", "orbax")
  layout = {f"trained/{path}": list(leaf.shape) for path, leaf in wanted.items()}
  layout |= {
    f"frozen_inputs/{path}": list(leaf.shape)
    for path, leaf in paths.flatten(model.frozen_inputs).items()
  }
  assert {path: one["shape"] for path, one in about["checkpoint"].items()} == layout


def test_an_older_export_is_replaced_as_a_whole(lm, tmp_path):
  target = tmp_path / "tree"
  write(target, tuned(lm, "neural_recursion"))
  (target / "mine.txt").write_text("stays")
  model = tuned(lm, "prompt_tuning")
  write(target, model)
  assert (target / "mine.txt").read_text() == "stays"
  assert set(read_manifest(target, "orbax")["checkpoint"]) == {"trained/prompt/vectors"}
  listed = set(read_manifest(target, "orbax")["files"])
  there = {one.relative_to(target).as_posix() for one in target.rglob("*") if one.is_file()}
  assert there == listed | {"orbax.json", "mine.txt"}


def test_a_half_written_export_leaves_the_older_one(lm, tmp_path, monkeypatch):
  target = tmp_path / "tree"
  write(target, tuned(lm, "prompt_tuning"))
  before = read_manifest(target, "orbax")
  with pytest.raises(KeyboardInterrupt), filled_folder(target) as new:
    write_orbax(new, tuned(lm, "lora"))
    raise KeyboardInterrupt
  assert read_manifest(target, "orbax") == before and len(list(tmp_path.iterdir())) == 1


def test_nothing_trained_is_nothing_to_export(lm, tmp_path):
  with pytest.raises(UserError, match="zero_shot trains nothing"):
    write_orbax(tmp_path, tuned(lm, "zero_shot"))


def test_an_altered_checkpoint_is_refused(lm, tmp_path):
  write(tmp_path / "tree", tuned(lm, "prompt_tuning"))
  for name in list(read_manifest(tmp_path / "tree", "orbax")["files"])[:4]:
    path = tmp_path / "tree" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?" if data.endswith(b"!") else data[:-1] + b"!")
    with pytest.raises(UserError, match="truncated or altered"):
      read_manifest(tmp_path / "tree", "orbax")
    path.write_bytes(data)
  assert jax.tree.leaves(read_manifest(tmp_path / "tree", "orbax"))
