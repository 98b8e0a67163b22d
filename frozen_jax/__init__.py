"""frozen_jax: small trained networks around large frozen language models, in JAX and Flax.

    from frozen_jax import load_frozen, load_adapter
    lm = load_frozen("smollm2-135m-instruct")
    adapter = load_adapter("runs/recursive", lm)
    adapter.generate(["What is the capital of Peru?"])

Names are loaded when they are first used, so that a config file can be read without jax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from frozen_jax.run.adapter import Adapter as Adapter
  from frozen_jax.run.adapter import load_adapter as load_adapter
  from frozen_jax.run.frozen_encoder import FrozenEncoder as FrozenEncoder
  from frozen_jax.run.frozen_encoder import load_encoder as load_encoder
  from frozen_jax.run.frozen_lm import FrozenLM as FrozenLM
  from frozen_jax.run.frozen_lm import load_frozen as load_frozen

_HOMES = {
  "load_frozen": "frozen_jax.run.frozen_lm",
  "FrozenLM": "frozen_jax.run.frozen_lm",
  "load_encoder": "frozen_jax.run.frozen_encoder",
  "FrozenEncoder": "frozen_jax.run.frozen_encoder",
  "load_adapter": "frozen_jax.run.adapter",
  "Adapter": "frozen_jax.run.adapter",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'frozen_jax' has no attribute {name!r}")
  import importlib

  return getattr(importlib.import_module(_HOMES[name]), name)
