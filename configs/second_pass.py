"""What a second pass is worth, next to its controls.

    python -m frozen_jax.main --config=configs/second_pass.py:first_hop
    python -m frozen_jax.main --config=configs/second_pass.py
    python -m frozen_jax.main --config=configs/second_pass.py:all --config.seeds=0,1,2

Stages, after one tuned prompt and with equal steps each: `late_prompt`, a prompt within the stack
and nothing else; `control`, the same Connector between two layers in one pass; `second_pass`, which
reads above what it writes to. The Connector is one linear map of each position, so only the frozen
layers can carry anything from one position to another. The questions are `chains`: their facts are
told before them, and each hop has to be made. `--config.recursion.passes=3`: in three passes.
`:first_hop` trains the prompt before pass one on the first hop's answer, and starts from there: the
form in which a second pass pays.

Measured 2026-11-29 on one core (EPYC, AVX512), seed 0, 900 test questions, exact match at one, two,
three hops: `control` 100 / 67.7 / 31.7, `second_pass` 98.7 / 44.7 / 32.7. After 640 steps of 16
rows, 450 questions, seeds 0 to 2: `control` 100 / 99.4 / 51.4, `second_pass` 100 / 95.8 / 63.2,
`lora` 98.0 / 75.6 / 56.9; seed 0: `three_passes` 99.3 / 96.2 / 70.1. `:first_hop`, seeds 0-2:
`control` 99.8 / 99.6 / 45.4, `second_pass` 99.5 / 99.4 / 95.6
(docs/results/second_pass_chains.md). `:world_facts`, 180 steps of 16 rows, seeds 0-2, 2026-12-01,
exact match / loss: `late_prompt` 62.2 / 0.988, `control` 64.2 / 0.907, `second_pass` 65.4 / 0.893;
`prefix` 64.6 / 0.860, `lora` 65.6 / 0.801 (docs/results/second_pass_world_facts.md).

`:all` sets rivals beside them: `prompt_on`, the prompt trained on; `paper`, the paper's form;
`lora` and `prefix` of about as many trained numbers as the linear Connector and its prompt, 0.34 M;
three passes; `recirculation` and `looped`, which train nothing. One rule says how long each is
trained: until three validations in a row, 120 steps, bring no lower loss, and 480 steps at most.
With equal steps instead: `--config.train.patience=0`; with equal FLOPs of training besides:
`--config.stages.prompt_on.train.steps=570`, a fifth more than `second_pass` has. `:all_first_hop`
gives `lora` and `prefix` the first hop's labels, too. There a row ends after 240 steps without a
lower loss, or after 640.

Variants: `:first_hop`; `:all`; `:all_first_hop`; `:world_facts` and `:all_world_facts` closed-book
questions about countries; `:smoke`.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import chains, first_layers, shrink
from frozen_jax.run.defaults import defaults

_WRITE, _READ = "0.2", "0.8"  # of the depth: of SmolLM2's 30 layers, 6 and 24
_VARIANTS = ("smoke", "first_hop", "world_facts", "all", "all_first_hop", "all_world_facts")


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
  if variant.endswith("world_facts"):
    config.train.learning_rate.connector = 3e-4  # at 1e-3 the loss rises first
  else:
    chains(config)
  if variant.startswith("all"):
    _add_rivals(config)
  if variant.endswith("first_hop"):
    _teach_first_hop(config)
  if variant == "smoke":
    shrink(config)
    first_layers(config)
    config.recursion.write = "1"  # of two layers; 0.2 of them would be the embeddings
    config.stages.prompt.train = ConfigDict({})
  elif variant and variant not in _VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are: {', '.join(_VARIANTS)}")
  return config


def _stages() -> ConfigDict:
  one_pass = {"passes": 1}
  return ConfigDict(
    {
      "prompt": {
        "method": "prompt_tuning",
        "train": {"steps": 80, "learning_rate": {"prompt": 0.02}},
      },
      "late_prompt": _after_prompt(recursion={**one_pass, "connector": {"kind": "none"}}),
      "control": _after_prompt(recursion=one_pass),
      "second_pass": _after_prompt(),
    }
  )


def _teach_first_hop(config: ConfigDict) -> None:
  """Pass one's prompt, and rivals without one, learn the first hop; the rest starts from there."""
  first_hop = {
    "data": {"fields": ("answers=first_hop",)},
    "train": {"steps": 240, "validate_every": 40},
  }
  config.stages.prompt.update(first_hop)
  taught = [name for name in ("lora", "prefix") if name in config.stages]
  for name in taught:
    config.stages[f"{name}_first_hop"] = {**config.stages[name], **first_hop}
    config.stages[name].init_from = (f"{name}={name}_first_hop/{name}",)
  if taught:
    config.stage_order = (*(f"{name}_first_hop" for name in taught), *config.stage_order)
  else:
    config.stage_order = ("prompt", "control", "second_pass")
    config.gains = ("the second pass: second_pass over control",)
  config.train.steps, config.train.batch_size = 640, 16
  config.train.learning_rate.connector = 2e-3
  config.train.validate_every = config.train.checkpoint_every = 80
  config.train.validate_examples, config.evaluate.max_examples = 150, 450


def _after_prompt(**values) -> dict:
  """A stage of neural recursion whose first pass has the tuned prompt."""
  return {
    "method": "neural_recursion",
    "frozen_inputs": ("first_prompt=prompt/prompt",),
    **values,
  }


def _add_rivals(config: ConfigDict) -> None:
  """All that a second pass is compared with, each trained until its validation stands still."""
  at_input = {"init_from": ("prompt=prompt/prompt",)}
  config.stages.update(
    {
      "prompt_on": {
        "method": "prompt_tuning",
        "train": {"learning_rate": {"prompt": 0.01}},
        **at_input,
      },
      "paper": _after_prompt(
        recursion={
          "read": "final",
          "write": "embeddings",
          "connector": {"kind": "transformer"},
          "passes": 2,
        },
        train={"learning_rate": {"prompt": 0.01, "connector": 1e-4}},
        **at_input,
      ),
      "lora": {"method": "lora", "lora": {"rank": 6, "targets": ("attn/q", "attn/v")}},
      "prefix": {"method": "prefix_tuning", "prompt": {"length": 30}},
      "recirculation": {"method": "recirculation"},
      "looped": {"method": "looped"},
      "three_passes": _after_prompt(recursion={"passes": 3}),
    }
  )
  config.stage_order = (
    *("prompt", "prompt_on", "late_prompt", "paper", "lora", "prefix"),
    *("recirculation", "looped", "control", "three_passes", "second_pass"),
  )
  config.gains = (
    "the prompt's place: late_prompt over prompt_on",
    *config.gains,
    "the third pass: three_passes over second_pass",
    "the paper's form: paper over prompt_on",
    "all of it: second_pass over prompt_on",
  )
  config.train.learning_rate.update({"lora": 3e-3, "prefix": 0.05})
  config.train.steps, config.train.patience = 480, 3
  config.stages.prompt.train.steps = 240
