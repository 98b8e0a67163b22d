"""Prompt tuning on many tasks: one prompt for all, and one for each.

    python -m frozen_jax.main --config=configs/multitask_prompt_tuning.py

Stages: `shared` tunes one prompt; `per_task` as many steps a prompt for each data set. Texts of a
data set that is not trained on get the mean of those.

Variants: `:smoke` the same in a minute or two; `:t0` T0/P3 rows from files (see configs/id_pt.py).
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import many_tasks, shrink_many_tasks, t0
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  many_tasks(config)
  config.stage_order = ("shared", "per_task")
  config.baseline = "shared"
  config.stages = ConfigDict(
    {
      "shared": {"method": "prompt_tuning"},
      "per_task": {"method": "prompt_tuning", "prompt": {"per_task": True}},
    }
  )
  if variant == "smoke":
    shrink_many_tasks(config)
  elif variant == "t0":
    t0(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke, t0")
  return config
