"""Prompt tuning (Lester et al., 2021) of a frozen LM on closed-book questions.

    python -m frozen_jax.main --config=configs/prompt_tuning.py

TO_MEASURE
"""

from ml_collections import ConfigDict

from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.order = ("prompt",)
  config.stages.prompt = ConfigDict({"method": "prompt_tuning"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    config.model.dtype = "float32"
    config.train.steps = 4
    config.train.batch_size = 8
    config.train.log_every = 1
    config.train.validate_every = config.train.checkpoint_every = 2
    config.train.validate_examples = 16
    config.train.warmup_steps = 1
    config.evaluate.max_examples = 16
    config.evaluate.batch_size = 16
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
