"""Pass one of textual recursion: what the LM proposes to each question."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.data.examples import Example
from frozen_jax.decoding.requests import Sampling
from frozen_jax.run.answering import continued
from frozen_jax.run.frozen_lm import FrozenLM
from frozen_jax.run.stages import System, question_task

SAMPLED_AT_ONCE = 64  # questions

# What of `candidates` the samples depend on.
OPTIONS = ("samples", "temperature", "top_k", "top_p")

Row = dict[str, Any]


def sampled(first: System, lm: FrozenLM, examples: Iterable[Example]) -> Iterator[Row]:
  """The example with `samples`, [text, log-probability] of each, for each of the examples.

  `first` is pass one, with the options of the run. Raises UserError for a question that does not
  fit, and for options of sampling that make no sense.
  """
  options = first.options
  task, sampling = question_task(options, lm, first.method), sampling_of(options)
  examples = iter(examples)
  while block := list(itertools.islice(examples, SAMPLED_AT_ONCE)):
    found = continued(first, lm, task, block, sampling)
    for example, samples in zip(block, found, strict=True):
      yield {**example, "samples": [[one.text.strip(), one.total] for one in samples]}


def sampling_of(options: Mapping[str, Any]) -> Sampling:
  """How candidates are sampled, of a run's options; UserError for greedy ones and for nonsense."""
  candidates = options["candidates"]
  if candidates["temperature"] == 0:
    raise UserError("candidates.temperature is 0, so all samples would be one; give some, as 1.0")
  return Sampling(
    options["evaluate"]["max_new_tokens"],
    candidates["temperature"],
    candidates["samples"],
    options["seed"],
    candidates["top_k"],
    candidates["top_p"],
  )
