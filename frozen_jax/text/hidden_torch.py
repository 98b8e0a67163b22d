"""torch is kept from transformers, which imports it with `AutoTokenizer` wherever it is installed.

Its tokenizers work without it. A recursive smoke run on a tiny model, everything compiled before,
took 13.3 s of CPU time and 558 MB without torch, 20.2 s and 917 MB with it (one core beside other
work, 2026-11-29).
"""

import importlib.util


def hide_torch() -> None:
  """For this whole process: transformers finds no torch. For a program that owns its process.

  transformers asks `importlib.util.find_spec` and keeps the answer. `import torch` still works.
  """
  find_spec = importlib.util.find_spec

  def find(name: str, package: str | None = None):  # type: ignore[no-untyped-def]
    return None if name == "torch" else find_spec(name, package)

  importlib.util.find_spec = find
