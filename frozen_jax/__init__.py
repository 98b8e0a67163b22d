"""frozen_jax: small trained networks around large frozen language models, in JAX and Flax.

    from frozen_jax import load_frozen, load_adapter
    lm = load_frozen("smollm2-135m-instruct")
    adapter = load_adapter("runs/recursive", lm)
    adapter.generate(["What is the capital of Peru?"])

Names are loaded when they are first used, so that a config file can be read without jax.
"""

from typing import TYPE_CHECKING, Any

from frozen_jax.core.version import __version__ as __version__

if TYPE_CHECKING:
  from frozen_jax.models.frozen_encoder import FrozenEncoder as FrozenEncoder
  from frozen_jax.models.frozen_encoder import load_encoder as load_encoder
  from frozen_jax.models.frozen_lm import FrozenLM as FrozenLM
  from frozen_jax.models.frozen_lm import load_frozen as load_frozen
  from frozen_jax.models.tuned_model import TunedModel as TunedModel
  from frozen_jax.pipelines.load_adapter import load_adapter as load_adapter

_MODULES = {
  "load_frozen": "frozen_jax.models.frozen_lm",
  "FrozenLM": "frozen_jax.models.frozen_lm",
  "load_encoder": "frozen_jax.models.frozen_encoder",
  "FrozenEncoder": "frozen_jax.models.frozen_encoder",
  "load_adapter": "frozen_jax.pipelines.load_adapter",
  "TunedModel": "frozen_jax.models.tuned_model",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module 'frozen_jax' has no attribute {name!r}")
  import importlib

  return getattr(importlib.import_module(_MODULES[name]), name)
