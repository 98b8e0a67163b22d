"""torch is kept from transformers, which imports it with `AutoTokenizer` wherever it is installed.

Its tokenizers work without it; the program then starts seconds earlier and takes 350 MB less
(BUILD_NOTES, "Versions").
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
