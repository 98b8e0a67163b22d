"""Prompt tuning (Lester et al., 2021) on closed-book questions.

    python -m frozen_jax.main --config=configs/prompt_tuning.py

Its first 80 steps, as a stage of configs/recursive.py of that day (seed 0, two cores): exact match
54.0% on 300 questions about held-out countries (measured 2026-11-22); the 150 of this config were
not run.

Variants: `:smoke`; `:chains` questions of one to three hops whose facts are told before them;
`:llama3_8b`, `:llama3_70b`, `:j1_jumbo` a large LM on a pod (docs/pods.md).
"""

from ml_collections import ConfigDict

from frozen_jax.config.large_models import LARGE_MODELS, large_model
from frozen_jax.config.presets import chains, shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("prompt",)
  config.stages.prompt = ConfigDict({"method": "prompt_tuning"})
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  if variant == "smoke":
    shrink(config)
  elif variant == "chains":
    chains(config)
  elif variant in LARGE_MODELS:
    large_model(config, variant)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke, chains, {', '.join(LARGE_MODELS)}")
  return config
