"""A textual recursive LM (Levine et al., 2022): it reads its own answers.

    python -m frozen_jax.main --config=configs/textual_recursion.py

Stage `answer` tunes the prompt of pass one. Then it proposes answers: to validation and test
questions itself, to training questions by prompts tuned on the other folds (`answer_foldN`), so
that proposals in training look like those in a test. Stage `select` tunes the prompt of pass two,
which reads the question with the proposals. The table has pass one alone, the majority and the
likeliest of the same samples, and the oracle: whether any sample is right. Files are in
WORKDIR/candidates.

Measured 2026-11-28 on two cores, seeds 0, 1, 2, all 708 test questions, exact match: `answer` 59.3,
58.2, 57.5%, majority 60.0, 59.6, 60.7, likeliest 62.4, 61.9, 61.2, oracle 74.2, 74.0, 72.6,
`select` 61.7, 61.9, 61.4: against `answer` +3.3 points (95%: 1.5 to 5.2), against the likeliest
sample -0.1 (-2.0 to 1.7). Where only the questions that pass one is unsure of take pass two
(--mode=evaluate --config.cascade.compute_budget=1.3 --config.train.validate_examples=620): 62.0,
62.4, 61.0% at 1.32 passes. Each proposal is shown with its likelihood; with how often it was
sampled in its place `select` gained +0.7, +0.3, +2.0 points (300 questions, each ±3.7). Pass two
starts from pass one's prompt and reads 3 candidates: with 8, 150 steps and a prompt of its own it
lost 6.0 points (seed 0, counts, 300 questions; 95%: 2.0 to 9.7).

Variants: `:smoke` the same on few rows; `:nq` Natural Questions, closed book, from files:

    python -m frozen_jax.main --config=configs/textual_recursion.py:nq \\
      --config.data.train=nq_train.jsonl.gz --config.data.validation=nq_validation.jsonl.gz \\
      --config.data.test=nq_open_test.jsonl.gz

Its 16,525 training questions are sampled 16 times each: for a GPU. Measured 2026-11-27 on an H200
(7 minutes a run, three at once), 2,955 test questions, seeds 0, 1, 2: `answer` 2.6, 2.6, 3.2%,
oracle 5.7, 4.9, 5.9, `select` 3.0, 2.5, 2.7%: no gain (docs/results).

`:reader` proposes with a frozen reader (configs/frozen_reader.py): pass one reads passages, pass
two the proposals. Its questions and passages are the built-in ones, or are named as there; longer
passages want other reader.budgets, reader.budget and data.lengths.
"""

from ml_collections import ConfigDict

from frozen_jax.config.presets import (
  as_config,
  first_layers,
  natural_questions,
  shrink,
  world_facts_reader,
)
from frozen_jax.pipelines.propose_select.settings import CandidateSettings
from frozen_jax.pipelines.retrieve_read.settings import ReaderSettings
from frozen_jax.run.defaults import defaults


def get_config(variant: str = "") -> ConfigDict:
  config = defaults()
  config.candidates = as_config(CandidateSettings())
  config.cascade.confidence = "probability"
  config.stage_order = ("answer", "select")
  config.baseline = "answer"
  config.model.dtype = "bfloat16"
  config.train.steps = 150
  config.evaluate.max_examples = 1000  # all 708
  config.stages.answer = ConfigDict({"method": "prompt_tuning"})
  config.stages.select = ConfigDict(
    {
      "method": "textual_recursion",
      "init_from": ("prompt=answer/prompt",),
      "frozen_inputs": ("first_prompt=answer/prompt",),
      "data": {"lengths": (32, 48, 64, 80, 96, 128, 256)},
      "train": {"steps": 300},
    }
  )
  if variant == "smoke":
    shrink(config)
    first_layers(config)
    config.candidates.update({"samples": 4, "folds": 2, "questions": 8, "permutations": 2})
    config.stages.select.data.lengths = (64, 256)
    config.stages.select.train.steps = 3
  elif variant == "nq":
    natural_questions(config)
    config.train.update({"steps": 600, "validate_every": 50, "checkpoint_every": 100})
    config.evaluate.update({"batch_size": 512, "max_examples": 3000})
    config.stages.select.train.steps = 900
    config.candidates.template.candidate = "{text} ({count})"  # as measured
  elif variant == "reader":
    _reader(config)
  elif variant:
    raise ValueError(f"no variant {variant!r}; there are: smoke, nq, reader")
  return config


def _reader(config: ConfigDict) -> None:
  """Pass one reads passages, as the reader of configs/frozen_reader.py."""
  config.reader = as_config(ReaderSettings())
  world_facts_reader(config)
  del config.stages.select.data.lengths  # those of the run
  config.prompt.text = "Read the texts and answer the question with a few words from them."
  config.train.update({"steps": 100, "batch_size": 8})
  config.evaluate.update({"batch_size": 16, "max_examples": 300})
