"""Floor 6: the verbs of a run, `train`, `evaluate`, `predict` and `export`, a file each.

They are loaded when they are first used, so that a config file can be read without jax.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from frozen_jax.run.evaluate import evaluate as evaluate
  from frozen_jax.run.export import export as export
  from frozen_jax.run.predict import predict as predict
  from frozen_jax.run.train import train as train

__all__ = ["evaluate", "export", "predict", "train"]


class _Verbs(types.ModuleType):
  """Keeps `run.train` the function: the import of run/train.py would put its module there."""

  def __setattr__(self, name: str, value: Any) -> None:
    is_verb = name in __all__ and isinstance(value, types.ModuleType)
    super().__setattr__(name, getattr(value, name) if is_verb else value)

  def __getattr__(self, name: str) -> Any:
    if name not in __all__:
      raise AttributeError(f"module 'frozen_jax.run' has no attribute {name!r}")
    return getattr(importlib.import_module(f"frozen_jax.run.{name}"), name)


sys.modules[__name__].__class__ = _Verbs
