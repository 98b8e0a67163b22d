"""Two skills in turn (Levine et al., 2022): does one change the other?

    python -m frozen_jax.main --config=configs/extensibility.py
    python -m frozen_jax.main --config=configs/extensibility.py:fine_tuning

Stage `first` learns questions about countries, stage `second` the built-in mixture of tasks. With
frozen weights each skill is a prompt of its own, and the answers of the first stay what they were,
bit by bit. Fine-tuned, the second goes on from the weights of the first, and changes them.

Variants: `:smoke` the same in a minute or two; `:fine_tuning` and `:fine_tuning_smoke`.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import many_tasks, shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  if variant not in ("", "smoke", "fine_tuning", "fine_tuning_smoke"):
    raise ValueError(f"no variant {variant!r}; there are: smoke, fine_tuning, fine_tuning_smoke")
  tuned = variant.startswith("fine_tuning")
  config.stage_order = ("first", "second")
  config.baseline = "zero_shot"
  config.model.dtype = "bfloat16"
  config.train.steps = 80
  config.evaluate.update(
    {"skills": ("first",), "general_text": "plain_english/validation", "max_examples": 200}
  )
  second = defaults()
  many_tasks(second)
  method = "fine_tuning" if tuned else "prompt_tuning"
  config.stages = ConfigDict(
    {
      "first": {"method": method},
      "second": {
        "method": method,
        "init_from": ("lm=first/lm",) if tuned else (),
        "data": second.data.copy_and_resolve_references(),
        "prompt": {"text": second.prompt.text},
      },
    }
  )
  if variant.endswith("smoke"):
    shrink(config)
    config.stages.second.data.lengths = (32, 64)
  return config
