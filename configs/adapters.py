"""Bottleneck adapters (Houlsby et al., 2019) in a frozen LM, on closed-book questions.

    python -m frozen_jax.main --config=configs/adapters.py

Trained: a bottleneck of 32 behind attention and MLP of every layer.
"""

from ml_collections import ConfigDict

from frozen_jax.run.defaults import adapters, defaults, shrink


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.order = ("adapters",)
  config.stages.adapters = ConfigDict({"method": "adapters"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  config.adapters = adapters()
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
