"""Adapters (Houlsby et al., 2019) in a frozen LM, on closed-book questions.

    python -m frozen_jax.main --config=configs/adapters.py

Trained: a bottleneck of 32 after attention and MLP of every layer.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("adapters",)
  config.stages.adapters = ConfigDict({"method": "adapters"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
