"""Methods of one pass on many tasks, on equal examples, in a table.

    python -m frozen_jax.main --config=configs/compare_methods.py

Each stage starts from the unmodified LM and sees the same rows in the same order.
`--config.stage_order` leaves some of them out.

Variants: `:smoke` the same on few rows; `:t0` T0/P3 rows from files (see configs/id_pt.py).
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import first_layers, many_tasks, shrink_many_tasks, t0
from frozen_jax.run.defaults import defaults

METHODS = ("prompt_tuning", "id_pt", "prefix_tuning", "lora", "adapters", "fine_tuning")


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  many_tasks(config)
  config.stage_order = METHODS
  config.baseline = "prompt_tuning"
  config.stages = ConfigDict({name: {"method": name} for name in METHODS})
  config.model.encoder = "minilm-l6-v2"
  config.evaluate.general_text = "plain_english/validation"
  if variant == "smoke":
    shrink_many_tasks(config)
    first_layers(config)
    config.evaluate.max_examples = 2  # a row to rank and one to write of test and of held-out data
  elif variant == "t0":
    t0(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke, t0")
  return config
