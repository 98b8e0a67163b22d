"""The config sections of retrieval and packing, with their defaults. Imports no jax.

A section holds all that one kind of artifact depends on: retrieved passages on `RetrievalSettings`,
packed prompts on `PackingSettings` with its `ReaderTemplate`.
"""

import dataclasses
import string
from collections.abc import Sequence

from frozen_jax.config.section import setting
from frozen_jax.core.errors import UserError

RETRIEVERS = ("bm25", "dense")
FUSIONS = ("reciprocal_ranks", "weighted_sum")
PASSAGE_ORDERS = ("best_first", "best_last")
OVERFLOWS = ("error", "skip", "truncate")


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
  """Which retrievers search a corpus, and how their results are fused.

  Raises UserError for an unknown retriever or fusion, for weights of a weighted sum that are not
  one for each retriever, and for a depth below 1.
  """

  retrievers: tuple[str, ...] = setting(RETRIEVERS, "which retrievers search: bm25, dense")
  fusion: str = setting("reciprocal_ranks", "how several retrievers are fused", choices=FUSIONS)
  weights: tuple[float, ...] = setting(
    (1.0, 1.0), "of each retriever's scores, where fusion is weighted_sum"
  )
  encoder: str = setting(
    "minilm-l6-v2", "of the dense retriever", affects_result=False
  )  # its fingerprint does
  question_encoder: str = setting(
    "", "of its questions; empty: the same", affects_result=False
  )  # as `encoder`
  encoder_dtype: str = setting("bfloat16", "of its matrix products: float32 or bfloat16")
  separator: str = setting(" ", "between a passage's title and its text for the encoder")
  query_prompt: str = setting("", "put before each question for the encoder; empty: its own")
  passage_prompt: str = setting("", "put before each passage for the encoder; empty: its own")
  encoder_length: int = setting(256, "tokens to which passages are truncated for the encoder")
  depth: int = setting(100, "passages retrieved for a question, and re-ranked")

  def __post_init__(self) -> None:
    unknown = [name for name in self.retrievers if name not in RETRIEVERS]
    if unknown or not self.retrievers:
      raise UserError(
        f"reader.retrievers names {', '.join(unknown) or 'nothing'}; there are: "
        f"{', '.join(RETRIEVERS)}"
      )
    if self.fusion not in FUSIONS:
      raise UserError(f"reader.fusion is {self.fusion!r}; there are: {', '.join(FUSIONS)}")
    weights = self.weights
    if self.fusion == "weighted_sum" and (
      len(weights) != len(self.retrievers) or min(weights) < 0 or not any(weights)
    ):
      raise UserError(
        f"reader.weights is {weights}; give one from 0 up to each of reader.retrievers, not all 0"
      )
    if self.depth < 1:
      raise UserError(f"reader.depth is {self.depth}; give at least 1")


@dataclasses.dataclass(frozen=True)
class ReaderTemplate:
  """How passages and a question become a prompt; texts for str.format.

  Raises UserError for a malformed template.
  """

  prompt: str = setting(
    "{passages}\n\nQuestion: {question}\nAnswer:", "the whole text, with {passages} and {question}"
  )
  passage: str = setting("{title}: {text}", "a passage, with {text} and, if wanted, {title}")
  bare: str = setting("{text}", "a passage without a title")
  separator: str = setting("\n\n", "between passages")

  def __post_init__(self) -> None:
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
class PackingSettings:
  """How a prompt is packed with passages, whatever its budget of tokens.

  overflow: what happens with a passage for which there is no room. "error": it is left out, but one
  that does not even fit alone raises UserError. "skip": that one is left out too, and counted.
  "truncate": the first one without room is truncated to what is left, and packing ends.

  Raises UserError for values that are not allowed.
  """

  template: ReaderTemplate = setting(ReaderTemplate(), "texts of the prompt")
  passage_order: str = setting(
    "best_first", "or best_last: nearest to the question", choices=PASSAGE_ORDERS
  )
  overflow: str = setting(
    "skip", "of a passage longer than the budget: error, skip or truncate", choices=OVERFLOWS
  )
  max_passages: int = setting(0, "passages of a prompt at most; 0: as many as fit")

  def __post_init__(self) -> None:
    if self.passage_order not in PASSAGE_ORDERS:
      raise UserError(
        f"the order of passages is {self.passage_order!r}; it is one of {', '.join(PASSAGE_ORDERS)}"
      )
    if self.overflow not in OVERFLOWS:
      raise UserError(f"overflow is {self.overflow!r}; it is one of {', '.join(OVERFLOWS)}")
    if self.max_passages < 0:
      raise UserError(f"max_passages is {self.max_passages}; give 0 (as many as fit) or more")
