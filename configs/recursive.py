"""A neural recursive LM (Levine et al., 2022): LM - Connector - LM.

    python -m frozen_jax.main --config=configs/recursive.py

Stages: `prompt` tunes a single-pass prompt; `baseline` trains it on for as many steps as
`finetune` takes (the fair baseline); `pretrain` trains the Connector on plain text; `finetune`
trains the Connector and the second pass's prompt on the questions, after the tuned first prompt.

Measured 2026-11-23 on two cores (Intel Xeon, AMX bfloat16), 300 test questions, exact match / loss,
seeds 0, 1, 2: unmodified 0.0% / 5.278; `baseline` 51.3% / 1.180, 53.7% / 1.120, 58.0% / 1.089;
`finetune` 55.7% / 1.136, 55.0% / 1.051, 57.3% / 1.067. 9 minutes a run.

Variants: `:smoke` the same in a minute or two; `:nq` Natural Questions, closed book, from files:

    python -m frozen_jax.main --config=configs/recursive.py:nq \\
      --config.data.train=nq_train.jsonl.gz --config.data.validation=nq_validation.jsonl.gz \\
      --config.data.test=nq_open_test.jsonl.gz

`:paper` the paper's plain form, in which the Connector's output alone is what pass two reads;
`:llama3_8b`, `:llama3_70b`, `:j1_jumbo` a large LM on a pod (docs/pods.md).
"""

from ml_collections import ConfigDict

from frozen_jax.config.large_models import LARGE_MODELS, large_model
from frozen_jax.config.presets import natural_questions, shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("prompt", "baseline", "pretrain", "finetune")
  config.baseline = "baseline"
  config.recursion = ConfigDict(
    {
      "passes": 2,
      "input_skip": True,  # False: the paper's plain form
      "first_prompt": "frozen",  # before the first pass: none, frozen (the tuned one) or trained
      "last_prompt": "trained",  # before the later passes: none or trained
      "connector": {"width": 256, "layers": 2, "heads": 4, "dropout": 0.1},
    }
  )
  config.model.dtype = "bfloat16"
  config.train.steps = 60  # of `finetune` and of `baseline`
  config.train.learning_rate.update({"prompt": 0.01, "connector": 1e-4})
  config.train.validate_every = config.train.checkpoint_every = 20
  config.train.validate_examples = 200
  config.evaluate.max_examples = 300
  config.stages = _stages()
  if variant == "smoke":
    _smoke(config)
  elif variant == "paper":
    config.recursion.input_skip = False
  elif variant == "nq":
    natural_questions(config)
    config.stages.prompt.train.steps, config.stages.pretrain.train.steps = 500, 300
  elif variant in LARGE_MODELS:
    large_model(config, variant)
    config.stages.pretrain.data.lengths = config.data.lengths
    config.stages.pretrain.train.batch_size = config.train.batch_size
  elif variant:
    raise ValueError(
      f"no variant {variant!r}; there are: smoke, paper, nq, {', '.join(LARGE_MODELS)}"
    )
  return config


def _stages() -> ConfigDict:
  return ConfigDict(
    {
      "prompt": {
        "method": "prompt_tuning",
        "train": {"steps": 80, "learning_rate": {"prompt": 0.02}},
      },
      "baseline": {"method": "prompt_tuning", "init_from": ("prompt=prompt/prompt",)},
      "pretrain": {
        "method": "neural_recursion",
        "recursion": {"first_prompt": "none", "last_prompt": "none"},
        "data": {
          "train": "plain_english/train",
          "validation": "plain_english/validation",
          "test": "plain_english/validation",
          "lengths": (128,),
        },
        "train": {
          "steps": 40,
          "batch_size": 8,
          "validate_examples": 32,
          "learning_rate": {"connector": 1e-4},  # 1e-3 has to be unlearned afterwards
        },
      },
      "finetune": {
        "method": "neural_recursion",
        "init_from": ("prompt=prompt/prompt", "connector=pretrain/connector"),
        "frozen_inputs": ("first_prompt=prompt/prompt",),
      },
    }
  )


def _smoke(config: ConfigDict) -> None:
  shrink(config)
  # As `baseline`, whose step is then compiled already.
  config.stages.prompt.train = ConfigDict({"learning_rate": {"prompt": 0.01}})
  config.stages.pretrain.data.lengths = (64,)
  config.stages.pretrain.train.update({"steps": 2, "batch_size": 4, "validate_examples": 4})
