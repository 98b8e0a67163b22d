"""Floor 5: puts the parts together; `train`, `evaluate`, `predict` and `export` are the entries.

They are loaded when they are first used, so that a config file can be read without jax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from frozen_jax.run.entry import train as train
  from frozen_jax.run.reuse import evaluate as evaluate
  from frozen_jax.run.reuse import export as export
  from frozen_jax.run.reuse import predict as predict

__all__ = ["evaluate", "export", "predict", "train"]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module 'frozen_jax.run' has no attribute {name!r}")
  from frozen_jax.run import entry, reuse

  return getattr(entry if name == "train" else reuse, name)
