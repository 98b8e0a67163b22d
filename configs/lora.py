"""LoRA (Hu et al., 2021) of a frozen LM on closed-book questions.

    python -m frozen_jax.main --config=configs/lora.py

Trained: rank-8 updates of every matrix of attention and MLP.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("lora",)
  config.stages.lora = ConfigDict({"method": "lora"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
