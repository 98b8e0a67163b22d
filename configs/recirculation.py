"""Second passes that train nothing: recirculation and looped layers.

    python -m frozen_jax.main --config=configs/recirculation.py

Evaluates the LM as it is, recirculated (Mozer et al., 2026) and looped: on closed-book questions,
and by its perplexity on plain English (`forgetting` in results.json). The layers and shares are
those that SmolLM2's perplexity chose on one half of another text (docs/results/recirculation.md, by
`python -m benchmarks.recirculation`, two cores of an AMD EPYC, 2026-11-29); on the other half they
gained nothing. Of this command only `:smoke` was run, whose scores mean nothing.

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
  config.recirculation = ConfigDict({"write": "0.3", "read": "0.6", "alpha": 0.15})
  config.looped = ConfigDict({"start": "0.3", "stop": "0.42", "damping": 0.25})
  config.model.dtype = "bfloat16"
  config.evaluate.max_examples = 300
  config.evaluate.general_text = "plain_english/validation"
  if variant == "smoke":
    shrink(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
