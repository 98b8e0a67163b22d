"""Second passes that train nothing: recirculation and looped layers.

    python -m frozen_jax.main --config=configs/recirculation.py

Evaluates the LM as it is, recirculated (Mozer et al., 2026) and looped on closed-book questions,
and its perplexity on plain English. Neither was measured to its end.

Variants: `:smoke`.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("recirculation", "looped")
  config.stages = ConfigDict(
    {"recirculation": {"method": "recirculation"}, "looped": {"method": "looped"}}
  )
  config.model.dtype = "bfloat16"
  config.evaluate.max_examples = 300
  config.evaluate.general_text = "plain_english/validation"
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
