"""The data set `plain_english`: English prose from the Python distribution.

Two sources, each document one example: the topics of Python's own help (`pydoc_data.topics`, the
language reference as text) and the docstrings of the standard library, a document for each module
(read as source text; nothing is imported). So the text depends on the Python version.

`is_prose` decides what is prose. Paragraphs that name a held-out country of `world_facts` (or its
capital or people) are left out, so that training on this text before the questions reveals no
answers of those. The split is by document.
"""

import ast
import hashlib
import importlib
import pathlib
import re
import sysconfig
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from frozen_jax.data.builders.countries import held_out_facts, held_out_names, mentions
from frozen_jax.data.builtin import BUILTIN_DATASETS

SPLITS = BUILTIN_DATASETS["plain_english"].splits

_VALIDATION_PERCENT = 8
_MIN_WORDS = 12
_MIN_DOCUMENT = 200  # characters
_NOT_LIBRARY = ("ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo")
_CODE = re.compile(r">>>|\w\(|\w+\.\w+\.\w+|__|[{}<>\\|@$%^~=\[\]]")
_PLAIN = re.compile(r"[A-Za-z ,.;:'\"!?()/-]")
_ASCII = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")
_MARKUP = re.compile(
  r"\*\*?([^*\s][^*]*)\*\*?|``?([^`]+)``?'?|:[a-z]+:`([^`]+)`|'([^'\s]+)'|(\w)\(\)"
)


class PlainEnglish(tfds.core.GeneratorBasedBuilder):
  """Documents of prose paragraphs, separated by blank lines: {"id", "text"}."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage="https://docs.python.org/",
      features=tfds.features.FeaturesDict({"id": text(), "text": text()}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    texts = list(documents())
    return {split: self._generate_examples(texts, split) for split in SPLITS}

  def _generate_examples(
    self, texts: list[tuple[str, str]], split: str
  ) -> Iterator[tuple[str, dict[str, str]]]:
    for name, text in texts:
      if split_of(name) == split:
        yield name, {"id": name, "text": text}


def split_of(name: str) -> str:
  """train or validation, by a hash of the document's name."""
  percentile = int(hashlib.sha256(f"plain_english/{name}".encode()).hexdigest()[:8], 16) % 100
  return SPLITS[1] if percentile < _VALIDATION_PERCENT else SPLITS[0]


def documents() -> Iterator[tuple[str, str]]:
  """(name, text) of every document with enough prose; each paragraph occurs once."""
  names, facts = held_out_names(), held_out_facts()
  seen: set[str] = set()
  for name, raw in _raw_documents():
    prose = []
    for paragraph in paragraphs(raw):
      if paragraph in seen or mentions(paragraph, names) or mentions(paragraph, facts, False):
        continue
      seen.add(paragraph)
      prose.append(paragraph)
    text = "\n\n".join(prose)
    if len(text) >= _MIN_DOCUMENT:
      yield name, text


def paragraphs(text: str) -> Iterator[str]:
  """The prose of a text: blocks between blank lines, joined to one line, without markup."""
  for block in re.split(r"\n\s*\n", text.translate(_ASCII).expandtabs()):
    lines = block.splitlines()
    indents = {len(line) - len(line.lstrip()) for line in lines if line.strip()}
    joined = " ".join(_MARKUP.sub(_without_markup, " ".join(lines)).split())
    if len(indents) == 1 and is_prose(joined):
      yield joined


def is_prose(paragraph: str) -> bool:
  """At least 12 words, a capital first and a full stop last, no code, 97% plain characters."""
  words = paragraph.split()
  return (
    len(words) >= _MIN_WORDS
    and paragraph[0].isupper()
    and paragraph[-1] in '.!?"'
    and not _CODE.search(paragraph)
    and len(_PLAIN.findall(paragraph)) >= 0.97 * len(paragraph)
  )


def _without_markup(match: re.Match) -> str:
  return next(group for group in match.groups() if group is not None)


def _raw_documents() -> Iterator[tuple[str, str]]:
  topics = importlib.import_module("pydoc_data.topics").topics
  for name in sorted(topics):
    yield f"topics/{name}", topics[name]
  library = pathlib.Path(sysconfig.get_path("stdlib"))
  for path in sorted(library.rglob("*.py")):
    name = path.relative_to(library).as_posix()
    if not set(name.split("/")) & set(_NOT_LIBRARY):
      yield f"library/{name}", _docstrings(path)


def _docstrings(path: pathlib.Path) -> str:
  """A module's docstrings in the order of the source; empty where it cannot be read."""
  try:
    tree = ast.parse(path.read_text("utf8"))
  except (OSError, SyntaxError, ValueError):
    return ""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
  return "\n\n".join(text for text in texts if text)
