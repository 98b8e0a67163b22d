"""The config sections of retrieval and packing, with their defaults. Imports no jax.

A section holds all that one kind of artifact depends on: retrieved passages on `RetrievalSettings`,
packed prompts on `PackingSettings` with its `ReaderTemplate`.
"""

import dataclasses
import string
from collections.abc import Sequence
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.dtypes import WEIGHT_DTYPES
from frozen_jax.core.errors import UserError

RETRIEVERS = ("bm25", "dense")
FUSIONS = ("reciprocal_ranks", "weighted_sum")
PASSAGE_ORDERS = ("best_first", "best_last")
OVERFLOWS = ("error", "skip", "truncate")


@dataclasses.dataclass(frozen=True)
class RetrievalSettings(Section):
  """Which retrievers search a corpus, and how their results are fused.

  Raises UserError for weights of a weighted sum that are not one for each retriever, too.
  """

  section: ClassVar[str] = "reader"

  retrievers: tuple[str, ...] = setting(
    RETRIEVERS, "which retrievers search", choices=RETRIEVERS, nonempty=True
  )
  fusion: str = setting("reciprocal_ranks", "how several retrievers are fused", choices=FUSIONS)
  weights: tuple[float, ...] = setting(
    (1.0, 1.0), "of each retriever's scores, where fusion is weighted_sum", at_least=0
  )
  encoder: str = setting(
    "minilm-l6-v2", "of the dense retriever", affects_result=False, nonempty=True
  )  # its fingerprint does
  question_encoder: str = setting(
    "", "of its questions; empty: the same", affects_result=False
  )  # as `encoder`
  encoder_dtype: str = setting("bfloat16", "of its matrix products", choices=WEIGHT_DTYPES)
  separator: str = setting(" ", "between a passage's title and its text for the encoder")
  query_prompt: str = setting("", "put before each question for the encoder; empty: its own")
  passage_prompt: str = setting("", "put before each passage for the encoder; empty: its own")
  encoder_length: int = setting(
    256, "tokens to which passages are truncated for the encoder", at_least=2
  )
  depth: int = setting(100, "passages retrieved for a question, and re-ranked", at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    weights = self.weights
    if self.fusion == "weighted_sum" and (len(weights) != len(self.retrievers) or not any(weights)):
      raise UserError(
        f"config.reader.weights is {weights}; give one to each of reader.retrievers, not all 0"
      )


@dataclasses.dataclass(frozen=True)
class ReaderTemplate(Section):
  """How passages and a question become a prompt; texts for str.format.

  Raises UserError for a malformed template.
  """

  section: ClassVar[str] = "reader.template"

  prompt: str = setting(
    "{passages}\n\nQuestion: {question}\nAnswer:", "the whole text, with {passages} and {question}"
  )
  passage: str = setting("{title}: {text}", "a passage, with {text} and, if wanted, {title}")
  bare: str = setting("{text}", "a passage without a title")
  separator: str = setting("\n\n", "between passages")

  def __post_init__(self) -> None:
    super().__post_init__()
    for name, allowed, required in (
      ("prompt", {"passages", "question"}, {"passages", "question"}),
      ("passage", {"title", "text"}, {"text"}),
      ("bare", {"text"}, {"text"}),
    ):
      template = getattr(self, name)
      try:
        parsed = string.Formatter().parse(template)
        fields = {field for _, field, _, _ in parsed if field is not None}
      except ValueError as error:
        raise UserError(
          f"the reader's template {name} {template!r} is malformed ({error}); double those braces"
          " that are text"
        ) from error
      if not required <= fields <= allowed:
        raise UserError(
          f"the reader's template {name} {template!r} must hold {', '.join(sorted(required))} in"
          f" braces, and nothing but {', '.join(sorted(allowed))}"
        )

  def fill(self, question: str, passages: Sequence[str]) -> str:
    """The prompt, from passages that `fill_passage` has filled in."""
    return self.prompt.format(passages=self.separator.join(passages), question=question)

  def fill_passage(self, title: str, text: str) -> str:
    """The text of one passage in the prompt."""
    return self.passage.format(title=title, text=text) if title else self.bare.format(text=text)


@dataclasses.dataclass(frozen=True)
class PackingSettings(Section):
  """How a prompt is packed with passages, whatever its budget of tokens.

  overflow: what happens with a passage for which there is no room. "error": it is left out, but one
  that does not even fit alone raises UserError. "skip": that one is left out too, and counted.
  "truncate": the first one without room is truncated to what is left, and packing ends.
  """

  section: ClassVar[str] = "reader"

  template: ReaderTemplate = setting(ReaderTemplate(), "texts of the prompt")
  passage_order: str = setting(
    "best_first", "best_last: the best is nearest to the question", choices=PASSAGE_ORDERS
  )
  overflow: str = setting(
    "skip", "what becomes of a passage longer than the budget", choices=OVERFLOWS
  )
  max_passages: int = setting(0, "passages of a prompt at most; 0: as many as fit", at_least=0)
