"""Sources of examples: built-in data sets, those of tensorflow-datasets, and JSON-lines files.

A source holds the examples of one or several of them, by index, each in one of the forms of
`data/examples.py`, with the data sets that they are of. Prompt templates, if given, render each row
by each template of its data set.
"""

import functools
import hashlib
import json
import logging
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import parse_row
from frozen_jax.data.builtin import BUILTIN_SPECS
from frozen_jax.data.examples import Example, parse_example
from frozen_jax.data.indexed_rows import IndexedRows, Templates
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.data.prepared import open_builtin, open_tfds
from frozen_jax.data.rows import Rows, StoredRows
from frozen_jax.text.jinja_templates import load_templates

_JSON_LINES = (".jsonl", ".jsonl.gz")
_LOG = logging.getLogger(__name__)


class Source:
  """Examples by index. `name`: what was opened, for messages.

  datasets            the data sets that rows name, in the order of their first appearance; () for
                      one source whose rows name none
  dataset_index       int32 [N], which of them each example is of (0 where there are none)
  template_index      int32 [N], which pair of data set and template each example is of, numbered
                      likewise
  num_without_target  how many examples were left out since their target (or a template's) is empty
  """

  def __init__(self, parts: Sequence[IndexedRows], name: str):
    self.name, self._parts = name, parts
    named = [part.datasets or ([part.dataset] if len(parts) > 1 else []) for part in parts]
    self.datasets = tuple(dict.fromkeys(dataset for names in named for dataset in names))
    if not all(named):
      self.datasets = ()
    numbers = {dataset: number for number, dataset in enumerate(self.datasets)}
    pairs: dict[tuple[str, str], int] = {}
    dataset_index, template_index = [], []
    for part in parts:
      pair_numbers = [pairs.setdefault(pair, len(pairs)) for pair in part.pairs]
      dataset_numbers = [numbers.get(dataset, 0) for dataset, _ in part.pairs]
      template_index.append(np.array(pair_numbers, np.int32)[part.pair_index])
      dataset_index.append(np.array(dataset_numbers, np.int32)[part.pair_index])
    self.dataset_index = np.concatenate(dataset_index)
    self.template_index = np.concatenate(template_index)
    self.num_without_target = sum(part.num_without_target for part in parts)
    self._ends = np.cumsum([len(part) for part in parts])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = int(np.searchsorted(self._ends, index, side="right"))
    part = self._parts[number]
    example = dict(part[index - (int(self._ends[number - 1]) if number else 0)])
    if self.datasets:
      example.setdefault("dataset", part.dataset)
    example.setdefault("id", str(index))
    return example

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def __getstate__(self) -> object:
    raise TypeError("a Source holds open files; open it anew in the other process")

  @property
  def dataset_names(self) -> frozenset[str]:
    """The data sets that its rows name, or the names of its files and splits if they name none."""
    return frozenset(self.datasets or (part.dataset for part in self._parts))

  @functools.cached_property
  def digest(self) -> str:
    """A hash (hex) of what the examples are made from; equal digests, equal examples.

    Of a JSON-lines file its contents count (1 GB a second), not its path; of a built-in data set
    the version of its builder and the split; of another one of tensorflow-datasets name, version,
    split and number of rows; and the fields and templates that apply.
    """
    digests = json.dumps([part.digest for part in self._parts])
    return hashlib.sha256(digests.encode()).hexdigest()


def open_source(
  spec: str,
  fields: Mapping[str, str] | Sequence[str] | None = None,
  targets: bool = True,
  templates: str | Templates = "",
) -> Source:
  """Opens examples by index.

  Rows of data sets or templates whose target is empty are left out and counted in
  `num_without_target`; to find them, such a source is read once here (t0_train, 37,466 rows: about
  a second).

  Args:
    spec: a built-in name with its split (BUILTIN_SPECS), "tfds:NAME/SPLIT", the path of a .jsonl or
      .jsonl.gz file, or several of these, joined by commas. Of several, each whose rows name no
      `dataset` is a data set under its own name (world_facts, NAME, the file's name without
      ending).
    fields: our names of fields to those of the source, ("question=query", "answers=answer.text") or
      the same as a dict; of several sources they apply to those that have such fields.
    targets: False: rows need no answers or target (to predict).
    templates: a file or folder of prompt templates (`text/jinja_templates.py`): each row gives an
      example for each template of its data set. A data set without templates is not changed.

  Raises:
    UserError: an unknown name, no such file, an empty file, a malformed line, a row of none of the
      three forms, a template that fails. Rows are checked here if they name data sets or have
      templates; else the first 1,000 of a file, or the first of a split; others when they are read.
  """
  specs = _split_specs(spec)
  if isinstance(templates, str):
    templates = load_templates(templates) if templates else {}
  mapping = _field_mapping(fields)
  parts = [
    IndexedRows(
      _open_rows(one),
      one,
      _dataset_name(one),
      fields=mapping,
      fields_optional=len(specs) > 1,
      templates=templates,
      targets=targets,
    )
    for one in specs
  ]
  source = Source(parts, spec)
  if templates and not {"", *source.dataset_names} & set(templates):
    _LOG.warning(
      "the templates are for %s; %s holds %s, so none of them applies",
      *(", ".join(sorted(templates)), spec, ", ".join(sorted(source.dataset_names))),
    )
  return source


def open_questions(
  spec: str,
  fields: Mapping[str, str] | Sequence[str] | None = None,
  templates: str | Templates = "",
) -> Rows[Example]:
  """Opens questions to predict; they need no answers.

  Args:
    spec: "-" for standard input, a text file with a question (or a JSON object) a line, or what
      `open_source` takes. fields, templates: as in `open_source`.

  Raises:
    UserError: as `open_source`.
  """
  if spec == "-":
    return read_questions(sys.stdin, "standard input")
  if all(_is_data(one) for one in _split_specs(spec)):
    return open_source(spec, fields, targets=False, templates=templates)
  try:
    return read_questions(pathlib.Path(spec).read_text("utf8").splitlines(), spec)
  except FileNotFoundError as error:
    raise UserError(f"there is no file {spec}; check the path, or give - to type") from error
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"cannot read {spec} as text; give a text file with a question a line"
    ) from error


def read_questions(lines: Iterable[str], name: str) -> list[Example]:
  """Questions to predict from lines of text: each a JSON object of a known form, or a question.

  A line that starts with `{` is JSON ({"question"}, {"input"} or with answers too), any other line
  is a question; blank lines are skipped. Examples have an "id": their own, else the number of the
  line. Raises UserError naming `name` and the line for malformed ones, and if there is no question.
  """
  examples = []
  for number, line in enumerate(lines, start=1):
    text, where = line.strip(), f"{name}, line {number}"
    if not text:
      continue
    row = parse_row(text, where) if text.startswith("{") else {"question": text}
    example = parse_example(row, where, targets=False)
    example.setdefault("id", str(number))
    examples.append(example)
  if not examples:
    raise UserError(f"{name} holds no questions; give one a line")
  return examples


def _split_specs(spec: str) -> list[str]:
  """The sources that a spec names; a comma may also be part of a file's name."""
  if "," not in spec or pathlib.Path(spec).is_file():
    return [spec]
  specs = [one.strip() for one in spec.split(",")]
  if not all(specs) or len(set(specs)) < len(specs):
    raise UserError(f"{spec!r} names a source twice or leaves one out; give each once")
  return specs


def _is_data(spec: str) -> bool:
  """Whether it is one of `open_source`, not a text file of questions."""
  return spec in BUILTIN_SPECS or spec.startswith("tfds:") or spec.endswith(_JSON_LINES)


def _open_rows(spec: str) -> StoredRows:
  if spec.startswith("tfds:"):
    return open_tfds(spec)
  if spec.endswith(_JSON_LINES) or pathlib.Path(spec).is_file():
    return JsonLines(spec)
  if spec in BUILTIN_SPECS:
    return open_builtin(spec)
  raise UserError(
    f"unknown data {spec!r}; give one of {', '.join(BUILTIN_SPECS)}, or tfds:NAME/SPLIT, or the"
    " path of a .jsonl or .jsonl.gz file"
  )


def _dataset_name(spec: str) -> str:
  """The name of a source among several: a name without its split, or a file's own name."""
  if spec.startswith("tfds:") or spec in BUILTIN_SPECS:
    return spec.removeprefix("tfds:").rpartition("/")[0]
  return pathlib.Path(spec).name.removesuffix(".gz").removesuffix(".jsonl")


def _field_mapping(fields: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
  if fields is None or isinstance(fields, Mapping):
    return dict(fields or {})
  for entry in fields:
    if entry.count("=") != 1 or not all(entry.split("=")):
      raise UserError(f"field mapping {entry!r} is not of the form ours=theirs")
  return dict(entry.split("=") for entry in fields)
