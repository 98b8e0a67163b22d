"""A neural recursive LM (Levine et al., 2022): LM - Connector - LM.

    python -m frozen_jax.main --config=configs/recursive.py

Stages: `prompt` tunes a prompt. From it, with equal steps each: `baseline` trains it on;
`late_prompt` trains one within the stack and nothing else; `control` has a Connector, too, between
two layers and in one pass; `finetune` is the recursive LM, whose Connector reads a layer of pass
one and writes to one of pass two.

Measured 2026-12-01 on two cores (Intel Xeon, AMX bfloat16), seed 0, 300 test questions, exact match
/ loss: `baseline` 57.0% / 1.127, `late_prompt` 58.7% / 1.051, `control` 58.0% / 1.035, `finetune`
59.0% / 1.001. 9.9 minutes. (docs/results/second_pass_world_facts.md)

Variants: `:smoke` the same in a minute or two; `:nq` Natural Questions, closed book, from files:

    python -m frozen_jax.main --config=configs/recursive.py:nq \\
      --config.data.train=nq_train.jsonl.gz --config.data.validation=nq_validation.jsonl.gz \\
      --config.data.test=nq_open_test.jsonl.gz

`:paper` the paper's plain form: a Connector, pretrained on plain text, reads the final states, and
its output alone is what pass two reads at its embeddings; `:llama3_8b`, `:llama3_70b`, `:j1_jumbo`
two such passes through a large LM on a pod, the text's embeddings added (docs/pods.md).
"""

from ml_collections import ConfigDict

from frozen_jax.config.large_models import LARGE_MODELS, large_model
from frozen_jax.config.presets import natural_questions, shrink
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.stage_order = ("prompt", "baseline", "late_prompt", "control", "finetune")
  config.baseline = "baseline"
  config.gains = (
    "the prompt's place: late_prompt over baseline",
    "the Connector: control over late_prompt",
    "the second pass: finetune over control",
  )
  config.recursion = ConfigDict(
    {
      "passes": 2,
      "read": "0.8",  # of the depth: of SmolLM2's 30 layers, 24 and 6
      "write": "0.2",
      "input_skip": True,  # False: what the Connector writes takes the place of the stream
      "first_prompt": "frozen",  # before the first pass: none, frozen (the tuned one) or trained
      "last_prompt": "trained",  # before the later passes: none or trained
      "connector": {"kind": "linear"},  # by position: the frozen layers alone look across
    }
  )
  config.model.dtype = "bfloat16"
  config.train.steps = 60  # of every stage but the first
  config.train.learning_rate.update({"prompt": 0.01, "connector": 3e-4})
  config.train.validate_every = config.train.checkpoint_every = 30
  config.train.validate_examples = 128
  config.evaluate.max_examples = 300
  config.stages = _stages()
  if not variant:
    config.train.batch_size = 16  # of the main job, which is to end in minutes
  elif variant == "smoke":
    shrink(config)
    config.stages.prompt.train = ConfigDict({})
  elif variant == "paper":
    _whole_passes(config, input_skip=False)
  elif variant == "nq":
    natural_questions(config)
    config.stages.prompt.train.steps = 500
  elif variant in LARGE_MODELS:
    _whole_passes(config, input_skip=True)
    large_model(config, variant)
    # Those of the run, which flags may change.
    del config.stages.pretrain.data.lengths, config.stages.pretrain.train.batch_size
  elif variant:
    raise ValueError(
      f"no variant {variant!r}; there are: smoke, paper, nq, {', '.join(LARGE_MODELS)}"
    )
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
        "train": {"steps": 120, "learning_rate": {"prompt": 0.02}},
      },
      "baseline": {"method": "prompt_tuning", "init_from": ("prompt=prompt/prompt",)},
      "late_prompt": {**after_prompt, "recursion": {**one_pass, "connector": {"kind": "none"}}},
      "control": {**after_prompt, "recursion": one_pass},
      "finetune": after_prompt,
    }
  )


def _whole_passes(config: ConfigDict, input_skip: bool) -> None:
  """Both passes run all layers, and the Connector is pretrained, as in the paper."""
  config.stage_order = ("prompt", "baseline", "pretrain", "finetune")
  config.gains = ("the second pass: finetune over baseline",)
  config.recursion.update({"read": "final", "write": "embeddings", "input_skip": input_skip})
  config.recursion.connector.kind = "transformer"
  config.train.learning_rate.connector = 1e-4  # 1e-3 has to be unlearned after pretraining
  del config.stages.late_prompt, config.stages.control
  config.stages.pretrain = ConfigDict(
    {
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
      },
    }
  )
  config.stages.finetune.init_from = ("prompt=prompt/prompt", "connector=pretrain/connector")
