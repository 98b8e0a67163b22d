"""A tuned model: a method with its trained numbers, on the frozen model that they were trained on.

It is what evaluation, pipelines, export and tools pass around, and what `load_adapter` gives.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from frozen_jax.config.section import section_values
from frozen_jax.core.object_store import AnyPath
from frozen_jax.core.types import Batch, Learner, Method, Metrics, Prompt, Tree, TwoPass
from frozen_jax.data.examples import Example
from frozen_jax.data.settings import InputSettings
from frozen_jax.data.tasks import QuestionTask
from frozen_jax.decoding.requests import Completion, Sampling
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.models import generation
from frozen_jax.models.adapter_folder import write_adapter
from frozen_jax.models.choice_scoring import ChoiceQuestion, choice_log_likelihoods
from frozen_jax.models.inputs import encoder_inputs

_EMPTY: Mapping[str, Any] = {}


@runtime_checkable
class Inference(Protocol):
  """How questions are answered where it takes more than one greedy pass of the method.

  Pipelines and cascades give one to a tuned model (`pipelines/`).
  """

  def answer(self, model: "TunedModel", examples: Sequence[Example]) -> list[str]:
    """The model's answers, one for each example."""
    ...

  def inputs(self, model: "TunedModel", examples: Sequence[Example]) -> list[Example]:
    """The examples as the model's last pass reads them."""
    ...

  def to_json(self) -> dict[str, Any]:
    """What `adapter.json` holds of it."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class TunedModel:
  """A method, its trained tree and the frozen model.

  lm             the frozen LM (`models.frozen_lm.FrozenLM`), with its tokenizer and text encoder
  method         what is computed
  trained        the trained tree, float32
  frozen_inputs  small trees that the method reads and did not train (the tuned prompt of a
                 recursion's first pass)
  inputs         how a question becomes the input of the model
  generation     how many tokens, beams and rows
  sections       the config sections that the method was built from, by name
  remat          what a layer keeps for the backward pass, see `core.remat`
  inference      how questions are answered; None: by one greedy (or beam) completion
  """

  lm: Any
  method: Method
  trained: Tree = dataclasses.field(default_factory=dict)
  frozen_inputs: Tree = dataclasses.field(default_factory=dict)
  inputs: InputSettings = InputSettings()
  generation: GenerationSettings = GenerationSettings()
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  remat: str = "none"
  inference: Inference | None = None

  @property
  def frozen(self) -> Tree:
    """What the method's functions take as `frozen`."""
    return self.lm.frozen(self.frozen_inputs)

  @property
  def num_virtual_tokens(self) -> int:
    """How many positions of the context the method's own vectors take before the text."""
    return self.method.num_virtual_tokens(self.trained, self.frozen)

  @property
  def question_task(self) -> QuestionTask:
    """How questions that come without a source become inputs."""
    inputs = self.inputs
    encoder = encoder_inputs(self.lm, self.method, inputs)
    return QuestionTask(
      self.lm.tokenizer, inputs.template, inputs.lengths, encoder, inputs.datasets
    )

  def loss(self, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The loss of a batch that is on the mesh, in nats, and `Method.loss`'s metrics; no dropout."""
    return batch_loss(self.method, self.trained, self.frozen, batch)

  def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
    """`sampling.num_samples` completions of each prompt; UserError as `generation.complete`."""
    return generation.complete(self, prompts, sampling, self.generation.batch_size)

  def answer_once(self, examples: Sequence[Example]) -> list[str]:
    """The answer to each example by one completion: greedy, or the best that beams find."""
    settings, task = self.generation, self.question_task
    prompts = [task.prompt(example) for example in examples]
    if settings.num_beams == 1:
      completions = self.complete(prompts, Sampling(settings.max_new_tokens))
    else:
      completions = generation.beam_search(
        self, prompts, settings.num_beams, settings.max_new_tokens, settings.batch_size
      )
    return [best.text.strip() for best, *_ in completions]

  def answer(self, examples: Sequence[Example]) -> list[str]:
    """The answer to each example, by as many passes as `inference` takes."""
    if not examples:
      return []
    if self.inference is None:
      return self.answer_once(examples)
    return self.inference.answer(self, examples)

  def generate(
    self,
    texts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
  ) -> list[str] | list[list[str]]:
    """Answers questions, each put into the template that the model was tuned with.

    Greedy at temperature 0, and then by as many passes as `inference` takes; samples are all of the
    last pass. Returns a list of str, or of lists with `num_samples` above 1. Raises UserError
    for a question longer than the model's context.
    """
    generation.check_texts(texts, self.lm)
    sampling = Sampling(max_new_tokens, temperature, num_samples, seed)
    examples = [{"id": str(n), "question": text} for n, text in enumerate(texts, start=1)]
    if not temperature and num_samples == 1:
      greedy = dataclasses.replace(self.generation, max_new_tokens=max_new_tokens, num_beams=1)
      return dataclasses.replace(self, generation=greedy).answer(examples)
    read = examples if self.inference is None else self.inference.inputs(self, examples)
    task = self.question_task
    completions = self.complete([task.prompt(example) for example in read], sampling)
    samples = [[one.text.strip() for one in each] for each in completions]
    return [each[0] for each in samples] if num_samples == 1 else samples

  def log_likelihoods(self, questions: Sequence[ChoiceQuestion]) -> list[Any]:
    """The log-likelihood of each choice of each row in nats; see `choice_log_likelihoods`."""
    return choice_log_likelihoods(self, questions, self.generation.batch_size)

  def save(self, folder: str | AnyPath) -> AnyPath:
    """Writes `adapter.json` and `adapter.safetensors`, which `load_adapter` reads."""
    encoder = self.lm.encoder if self.method.encoder_input else None
    info = {
      "method": self.method.name,
      "model": self.lm.name,
      "frozen_fingerprint": self.lm.fingerprint,
      "encoder": getattr(encoder, "name", ""),
      "encoder_fingerprint": getattr(encoder, "fingerprint", ""),
      "dtype": str(self.lm.params["final_norm"]["scale"].dtype),
      "sections": {name: section_values(one) for name, one in self.sections.items()},
      "inputs": section_values(self.inputs),
      "generation": section_values(self.generation),
      "inference": None if self.inference is None else self.inference.to_json(),
    }
    trees = {"trained": self.trained, "frozen_inputs": self.frozen_inputs}
    return write_adapter(folder, trees, info)

  @property
  def first_pass(self) -> "TunedModel":
    """Pass one of a method of two passes, as a model of its own."""
    assert isinstance(self.method, TwoPass)
    method, trained = self.method.first_pass(self.trained, self.frozen)
    return dataclasses.replace(
      self, method=method, trained=trained, frozen_inputs={}, inference=None
    )

  def with_trained(self, trained: Tree) -> "TunedModel":
    """The same model with other trained numbers."""
    return dataclasses.replace(self, trained=trained)


@functools.partial(jax.jit, static_argnums=0)
def batch_loss(
  method: Learner, trained: Tree, frozen: Tree, batch: Any
) -> tuple[jax.Array, Metrics]:
  """`Learner.loss` without dropout, compiled once for each shape of batch."""
  return method.loss(trained, frozen, batch, None)
