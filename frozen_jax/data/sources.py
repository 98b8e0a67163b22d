"""Sources of examples: built-in data sets, those of tensorflow-datasets, and files of rows.

A source holds the examples of one or several of them, by index, each in one of the forms of
`data/examples.py`, with the data sets that they are of. Prompt templates, if given, render each row
by each template of its data set.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import array_rows, is_array, parse_row, with_id
from frozen_jax.core.reading import open_unpacked, unpacked_name
from frozen_jax.core.text_file import check_characters, standard_input_lines, text_lines
from frozen_jax.core.user_path import user_path
from frozen_jax.data.builtin import BUILTIN_SPECS, SPECS_APART
from frozen_jax.data.examples import Example, parse_example
from frozen_jax.data.indexed_rows import IndexedRows, Templates
from frozen_jax.data.json_lines import JsonLines, is_row_file
from frozen_jax.data.prepared import PreparedRows, open_builtin, open_hub, open_tfds
from frozen_jax.data.rows import Rows, StoredRows
from frozen_jax.text.jinja_templates import load_templates

_LIBRARIES = ("tfds:", "hf:")
_LOG = logging.getLogger(__name__)

# Built-in splits that were indexed, by all that their examples depend on: a run opens each several
# times, for each stage and each score, and reading all rows takes a second.
_BUILTIN: dict[tuple[object, ...], IndexedRows] = {}


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
  def stored_names(self) -> tuple[str, ...]:
    """The fields of the first row of each file and split, as they are stored."""
    return tuple(dict.fromkeys(name for part in self._parts for name in part.stored_names))

  @property
  def dataset_names(self) -> frozenset[str]:
    """The data sets that its rows name, or the names of its files and splits if they name none."""
    return frozenset(self.datasets or (part.dataset for part in self._parts))

  @property
  def identities(self) -> dict[str, str]:
    """What tells the data sets apart from those of other sources -> their names.

    That is the name itself; of a file whose rows name no data set, a hash of its rows.
    """
    found: dict[str, str] = {}
    for part in self._parts:
      found |= {name: name for name in part.datasets} or {part.identity: part.dataset}
    return found

  def shared_with(self, other: "Source") -> list[str]:
    """The files and splits of this source whose rows `other` has too."""
    digests = {part.digest for part in other._parts}
    return [part.spec for part in self._parts if part.digest in digests]

  @functools.cached_property
  def digest(self) -> str:
    """A hash (hex) of what the examples are made from; equal digests, equal examples.

    Contents count, not their place or what prepared them: of a file its unpacked lines (1 GB a
    second), of a prepared data set its rows (100,000 a second); and the fields and templates that
    apply.
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
    spec: a built-in name with its split (BUILTIN_SPECS), "tfds:NAME/SPLIT",
      "hf:NAME[:CONFIG]/SPLIT" (by the package datasets), the path of a file of rows (.jsonl, .json,
      .csv, .tsv, each gzipped or not), or several of these, joined by commas. Of several, each
      whose rows name no `dataset` is a data set under its own name (world_facts, NAME, the file's
      name without ending, with as many folders before it as tell it apart; of a split in
      SPECS_APART the spec itself).
    fields: our names of fields to those of the source, ("question=query", "answers=answer.text") or
      the same as a dict; they apply to the sources that have such fields.
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
  names = _dataset_names(specs)
  parts = [
    _indexed_rows(one, name, mapping, templates, targets)
    for one, name in zip(specs, names, strict=True)
  ]
  source = Source(parts, spec)
  if templates and not {"", *source.dataset_names} & set(templates):
    _LOG.warning(
      "the templates are for %s; %s holds %s, so none of them applies",
      *(", ".join(sorted(templates)), spec, ", ".join(sorted(source.dataset_names))),
    )
  return source


def _indexed_rows(
  spec: str, dataset: str, fields: Mapping[str, str], templates: Templates, targets: bool
) -> IndexedRows:
  """The examples of one spec; those of a built-in split are indexed once in a process."""
  rows = _open_rows(spec)
  options = {"fields": fields, "templates": templates, "targets": targets}
  state = rows.files_state if isinstance(rows, PreparedRows) and spec in BUILTIN_SPECS else ()
  if templates or not state:
    return IndexedRows(rows, spec, dataset, **options)
  key = (spec, state, dataset, targets, *sorted(fields.items()))
  if key not in _BUILTIN:
    _BUILTIN[key] = IndexedRows(rows, spec, dataset, **options)
  return _BUILTIN[key]


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
    return read_questions(standard_input_lines(), "standard input")
  if all(_is_data(one) for one in _split_specs(spec)):
    return open_source(spec, fields, targets=False, templates=templates)
  path = user_path(spec)
  if not path.exists():
    raise UserError(f"there is no file {spec}; check the path, or give - to type")
  with open_unpacked(path) as file:
    return read_questions(text_lines(file, spec), spec)


def read_questions(lines: Iterable[str], name: str) -> list[Example]:
  """Questions to predict from lines of text: each a JSON object of a known form, or a question.

  A line that starts with `{` is JSON ({"question"}, {"input"} or with answers too), any other line
  is a question; blank lines are skipped. One array of such objects is read as these. Examples have
  an "id": their own, else the number of the line. Raises UserError naming `name` and the line for
  malformed ones, and if there is no question.
  """
  examples = []
  for number, where, row in _question_rows(list(lines), name):
    example = parse_example(with_id(row, where), where, targets=False)
    example.setdefault("id", str(number))
    examples.append(example)
  if not examples:
    raise UserError(f"{name} holds no questions; give one a line")
  return examples


def _question_rows(lines: list[str], name: str) -> Iterator[tuple[int, str, Mapping[str, object]]]:
  """(number, where it is, row) of each question."""
  if is_array(text := "\n".join(lines)) and "{" in text:
    try:
      rows = [(where, parse_row(row, where)) for where, row in array_rows(text, name)]
    except UserError:
      rows = []  # lines of text, of which the first starts with a bracket
    if rows:
      yield from ((number, *row) for number, row in enumerate(rows, start=1))
      return
  for number, line in enumerate(lines, start=1):
    # Characters that are white space to Unicode alone are part of the question.
    text, where = line.strip(" \t\r\n\f\v"), f"{name}, line {number}"
    if text.startswith("{"):
      yield number, where, parse_row(text, where)
    elif text:
      yield number, where, {"question": check_characters(text, where)}


def _split_specs(spec: str) -> list[str]:
  """The sources that a spec names; a comma may also be part of a file's name."""
  if "," not in spec or user_path(spec).is_file():
    return [spec]
  specs = [one.strip() for one in spec.split(",")]
  if not all(specs) or len({_identity(one) for one in specs}) < len(specs):
    raise UserError(f"{spec!r} names a source twice or leaves one out; give each once")
  return specs


def _is_file(spec: str) -> bool:
  """Whether a spec is the path of a file, there or not."""
  return not spec.startswith(_LIBRARIES) and spec not in BUILTIN_SPECS


def _is_data(spec: str) -> bool:
  """Whether it is one of `open_source`, not a text file of questions."""
  return not _is_file(spec) or is_row_file(spec)


def _open_rows(spec: str) -> StoredRows:
  if spec.startswith("tfds:"):
    return open_tfds(spec)
  if spec.startswith("hf:"):
    return open_hub(spec)
  if is_row_file(spec) or user_path(spec).is_file():
    return JsonLines(spec)
  if spec in BUILTIN_SPECS:
    return open_builtin(spec)
  raise UserError(
    f"unknown data {spec!r}; give one of {', '.join(BUILTIN_SPECS)}, or tfds:NAME/SPLIT,"
    " hf:NAME/SPLIT, or the path of a .jsonl, .json, .csv or .tsv file, gzipped (.gz) or not"
  )


def _identity(spec: str) -> str:
  return str(user_path(spec).resolve()) if _is_file(spec) else spec


def _dataset_names(specs: Sequence[str]) -> list[str]:
  """The name of each source: a name without its split, or a file's own name without its ending.

  Files of one name are told apart by as many of their folders as it takes, else by their endings.
  """
  names = [_dataset_name(one, 0) for one in specs]
  files = [number for number, one in enumerate(specs) if _is_file(one)]
  depth = max((len(user_path(specs[number]).resolve().parts) for number in files), default=0)
  for folders in range(1, depth):
    alike = [number for number in files if names.count(names[number]) > 1]
    for number in alike:
      names[number] = _dataset_name(specs[number], folders)
  for number in [number for number in files if names.count(names[number]) > 1]:
    names[number] = user_path(specs[number]).name
  return names


def _dataset_name(spec: str, folders: int) -> str:
  if spec in SPECS_APART:
    return spec
  if not _is_file(spec):
    return spec.removeprefix("tfds:").removeprefix("hf:").rpartition("/")[0]
  path = user_path(spec).resolve()
  name = unpacked_name(path.name)
  stem = name.rpartition(".")[0] if is_row_file(name) else name
  return "/".join([*path.parts[1:-1][-folders:], stem]) if folders else stem


def _field_mapping(fields: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
  if fields is None or isinstance(fields, Mapping):
    return dict(fields or {})
  for entry in fields:
    if entry.count("=") != 1 or not all(entry.split("=")):
      raise UserError(f"field mapping {entry!r} is not of the form ours=theirs")
  return dict(entry.split("=") for entry in fields)
