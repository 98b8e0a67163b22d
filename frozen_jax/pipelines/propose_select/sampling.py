"""Pass one of textual recursion: what the LM proposes to each question."""

import itertools
from collections.abc import Iterable, Iterator

from frozen_jax.core.json_row import Row
from frozen_jax.data.examples import Example
from frozen_jax.decoding.requests import Sampling
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.pipelines.propose_select.settings import CandidateSampling

SAMPLING_BLOCK = 64  # questions sampled together, and kept together after a kill


def sample_answers(
  model: TunedModel, examples: Iterable[Example], settings: CandidateSampling, seed: int
) -> Iterator[Row]:
  """Each example with `samples`: the text and log-probability in nats of each sampled answer.

  model: pass one. Raises UserError for a question that does not fit the context.
  """
  sampling = Sampling(
    model.generation.max_new_tokens,
    settings.temperature,
    settings.samples,
    seed,
    settings.top_k,
    settings.top_p,
  )
  task, examples = model.question_task, iter(examples)
  while block := list(itertools.islice(examples, SAMPLING_BLOCK)):
    completions = model.complete([task.prompt(example) for example in block], sampling)
    for example, samples in zip(block, completions, strict=True):
      yield {**example, "samples": [[one.text.strip(), one.total_log_prob] for one in samples]}
