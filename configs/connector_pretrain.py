"""Pretraining a Connector on plain text, for a recursive LM to start from.

    python -m frozen_jax.main --config=configs/connector_pretrain.py
    python -m frozen_jax.main --config=configs/recursive.py:paper \\
      --config.recursion.input_skip=True --config.stages.pretrain.train.steps=0 \\
      --config.init_from=runs/connector_pretrain

The recursive LM learns language modelling on text: two passes through all layers, no prompt, the
Connector alone trained. Give your own text with --config.data.train=FILE.jsonl.gz ({"text": ...} a
line).

Its first 40 steps, as a stage of configs/recursive.py of that day (seed 0, two cores): validation
loss 3.481 -> 3.362 (measured 2026-11-23). The 300 steps of this config were not run to their end.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("pretrain",)
  config.stages.pretrain = ConfigDict({"method": "neural_recursion"})
  config.data.train = "plain_english/train"
  config.data.validation = config.data.test = "plain_english/validation"
  config.data.lengths = (128,)
  config.recursion = ConfigDict(
    {
      "passes": 2,
      "input_skip": True,
      "first_prompt": "none",
      "last_prompt": "none",
      "connector": {"width": 256, "layers": 2, "heads": 4, "dropout": 0.1},
    }
  )
  config.model.dtype = "bfloat16"
  config.train.steps = 300
  config.train.batch_size = 8
  config.train.validate_examples = 64
  config.train.learning_rate.update({"connector": 1e-4})  # at 1e-3 the questions have to unlearn it
  if variant == "smoke":
    shrink(config)
    config.data.lengths = (64,)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke")
  return config
