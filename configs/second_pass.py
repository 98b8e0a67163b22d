"""What a second pass is worth, next to its controls.

    python -m frozen_jax.main --config=configs/second_pass.py

Stages, after one tuned prompt and with equal steps each: `late_prompt`, a prompt within the stack
and nothing else; `control`, the same Connector between two layers in one pass; `second_pass`, which
reads above what it writes to. The Connector is one linear map of each position, so only the frozen
layers can carry anything from one position to another. The questions are `chains`: their facts are
told before them, and each hop has to be made.

Variants: `:world_facts` closed-book questions about countries; `:smoke`.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import chains, first_layers, shrink
from frozen_jax.run.defaults import defaults

_WRITE, _READ = "0.2", "0.8"  # of the depth: of SmolLM2's 30 layers, 6 and 24


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("prompt", "late_prompt", "control", "second_pass")
  config.baseline = "control"
  config.gains = (
    "the Connector: control over late_prompt",
    "the second pass: second_pass over control",
  )
  config.recursion = ConfigDict(
    {"read": _READ, "write": _WRITE, "connector": {"kind": "linear"}, "passes": 2}
  )
  config.model.dtype = "bfloat16"
  config.train.steps = 160
  config.train.learning_rate.update({"prompt": 0.006, "connector": 1e-3})
  config.train.validate_every = config.train.checkpoint_every = 40
  config.train.validate_examples = 150
  config.evaluate.max_examples = 300
  config.stages = _stages()
  if variant != "world_facts":
    chains(config)
  if variant == "smoke":
    shrink(config)
    first_layers(config)
    config.stages.prompt.train = ConfigDict({})
  elif variant not in ("", "world_facts"):
    raise ValueError(f"no variant {variant!r}; there are: smoke, world_facts")
  return config


def _stages() -> ConfigDict:
  after_prompt = {
    "method": "neural_recursion",
    "frozen_inputs": ("first_prompt=prompt/prompt",),
  }
  one_pass = {"passes": 1}
  return ConfigDict(
    {
      "prompt": {
        "method": "prompt_tuning",
        "train": {"steps": 80, "learning_rate": {"prompt": 0.02}},
      },
      "late_prompt": {**after_prompt, "recursion": {**one_pass, "connector": {"kind": "none"}}},
      "control": {**after_prompt, "recursion": one_pass},
      "second_pass": after_prompt,
    }
  )
