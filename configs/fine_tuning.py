"""Full fine-tuning on closed-book questions, which all else is measured by.

    python -m frozen_jax.main --config=configs/fine_tuning.py

Trained: a float32 copy of every weight; the frozen tree stays as it is. A checkpoint holds the
whole model three times (weights and Adam's two moments).
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("tune",)
  config.stages.tune = ConfigDict({"method": "fine_tuning"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
