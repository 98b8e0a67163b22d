"""What the tests of the launchers share: the files, the presets, and the generator of JobSets."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
ARGUMENTS = ["--config=configs/recursive.py:smoke", "--config.data.train=a b'c$d.jsonl"]


def load(path):
  """A Python file outside any package, as a module."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


GENERATOR = load(LAUNCH / "k8s" / "jobset.py")
PRESETS = GENERATOR.presets()
TPUS = [name for name, preset in PRESETS.items() if preset["topology"] != "-"]


def mesh(preset):
  """The sizes of the axes data, fsdp, tensor."""
  return [int(size) for size in preset["mesh"].split(",")]
