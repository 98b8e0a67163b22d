"""Changes to a config that several experiments share. Imports no jax."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from frozen_jax.config.section import section_values


def as_config(section: Any) -> ConfigDict:
  """A section as a config holds it."""
  return _config(section_values(section))


def _config(values: Mapping[str, Any]) -> ConfigDict:
  nested = {
    key: _config(value) if isinstance(value, Mapping) else value for key, value in values.items()
  }
  return ConfigDict(nested)


def many_tasks(config: ConfigDict) -> None:
  """Lets a config train on the built-in mixture of tasks, with whole tasks held out."""
  config.data.update(
    {
      "train": "many_tasks/train",
      "validation": "many_tasks/validation",
      "test": "many_tasks/test",
      "held_out": ("many_tasks/held_out",),
      "template": "{question}",  # inputs stand as they are
      "sampling": "temperature",
      "lengths": (32, 64, 128),
    }
  )
  config.prompt.text = "Read the text and do what it asks for. Give the answer alone."
  config.model.dtype = "bfloat16"
  config.train.steps = 300
  config.train.batch_size = 16
  config.train.validate_every = config.train.checkpoint_every = 50
  config.train.learning_rate.update({"prefix": 0.05, "lora": 3e-3, "adapters": 3e-3, "lm": 1e-4})


def chains(config: ConfigDict) -> None:
  """Lets a config train on the built-in chains of friends, with longer ones held out."""
  config.data.update(
    {
      "train": "chains/train",
      "validation": "chains/validation",
      "test": "chains/test",
      "held_out": ("chains/longer",),
      "template": "{question}",  # the last sentence is to be completed
      "lengths": (48, 56, 80),
    }
  )
  config.prompt.text = "Read who is whose friend and complete the last sentence with a name."
  config.train.validate_examples = 300
  config.evaluate.update({"max_examples": 900, "max_new_tokens": 4})


def t0(config: ConfigDict) -> None:
  """T0/P3 rows from files, which are named by flags where they lie elsewhere."""
  config.data.update(
    {
      "train": "t0_train.jsonl.gz",
      "validation": "t0_validation.jsonl.gz",
      "test": "t0_validation.jsonl.gz",
      "held_out": ("t0_zero_shot.jsonl.gz", "bigbench_choices.jsonl.gz"),
      "sampling": "proportional",
      "cap": 1000,
      "lengths": (64, 128, 192, 256),
    }
  )
  config.evaluate.max_new_tokens = 32
  config.train.learning_rate.update({"prompt": 0.05, "generator": 3e-4})


def natural_questions(config: ConfigDict) -> None:
  """Natural Questions, closed book, from files: flags name them where they lie elsewhere."""
  config.data.train = "nq_train.jsonl.gz"
  config.data.validation = "nq_validation.jsonl.gz"
  config.data.test = "nq_open_test.jsonl.gz"
  config.prompt.text = "Answer the question with a short fact: a name, a number, a date or a place."
  config.train.steps = 300
  config.evaluate.max_examples = 1000


def world_facts_reader(config: ConfigDict) -> None:
  """Fits a reader's config to the built-in corpus: 390 short passages, nobody need read many."""
  reader, config.data.lengths = config.reader, (64, 96, 128, 192)
  reader.update({"depth": 20, "recall_at": (1, 5, 20), "questions": 500, "lm_depth": 8})
  reader.update({"budgets": (96, 192), "budget": 192})
  reader.re_ranker.update({"length": 128, "steps": 150})


def shrink(config: ConfigDict) -> None:
  """Makes a config its `:smoke` variant: the same work in a minute or two on two cores.

  Most of the minute is compiling, so shapes are few and XLA optimises little. float32, so that runs
  can be compared closely.
  """
  config.model.dtype = "float32"
  config.disable_most_optimizations = True
  config.train.update(
    {
      "steps": 2,
      "batch_size": 4,
      "log_every": 1,
      "validate_every": 2,
      "validate_examples": 4,
      "checkpoint_every": 2,
      "warmup_steps": 1,
    }
  )
  config.evaluate.update({"max_examples": 4, "batch_size": 4, "max_new_tokens": 4})


def first_layers(config: ConfigDict) -> None:
  """Has a `:smoke` variant that compiles many programs do so on the first layers of the LM."""
  config.model.num_layers = 2


def shrink_many_tasks(config: ConfigDict) -> None:
  """`shrink` for a mixture of tasks: two short lengths; the built-in one rarely needs the second.

  Two steps of two rows have the same number of targets, and the text encoder's inputs one length,
  so each method's step is compiled once.
  """
  shrink(config)
  config.data.update({"lengths": (32, 64), "encoder_length": 16})
  config.train.update({"steps": 2, "batch_size": 2})
