"""Long documents split into passages of 100 words, as DPR split Wikipedia (Karpukhin et al. 2020).

Unlike in DPR, the last passage of a document is not filled up with the document's beginning: it is
shorter.
"""

from collections.abc import Iterable, Iterator

from frozen_jax.retrieval.corpus import Passage
from frozen_jax.retrieval.words import word_spans


def split_documents(documents: Iterable[Passage], words: int = 100) -> Iterator[Passage]:
  """The disjoint passages of each document, of `words` words (`words.word_spans`) each.

  A passage has its document's title and the id `DOCUMENT-NUMBER`, counted from 0; its text is an
  unchanged part of the document, line breaks included.
  """
  if words < 1:
    raise ValueError(f"passages of {words} words")
  for document in documents:
    spans = word_spans(document.text)
    for number, first in enumerate(range(0, len(spans), words)):
      passage_spans = spans[first : first + words]
      text = document.text[passage_spans[0][0] : passage_spans[-1][1]]
      yield Passage(f"{document.id}-{number}", document.title, text)
