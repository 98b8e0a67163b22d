"""Prefix tuning (Li and Liang, 2021) on closed-book questions.

    python -m frozen_jax.main --config=configs/prefix_tuning.py

Trained: keys and values of 16 positions in every layer, 184,320 numbers for SmolLM2-135M.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("prefix",)
  config.stages.prefix = ConfigDict({"method": "prefix_tuning"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
