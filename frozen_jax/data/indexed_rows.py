"""The examples of one file or split: its rows, mapped, rendered by templates, and indexed.

Rows that name data sets, or have templates or labels, are indexed in one pass on opening: which
examples there are, and which data set and template each is of. Rows without a target have no index.
Other rows are one example each, and are not read on opening, but for the first ones.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.stalled import waits_for
from frozen_jax.data.examples import (
  Example,
  fields_present,
  lacks_target,
  map_fields,
  parse_example,
  rendered_example,
)
from frozen_jax.data.json_lines import JsonLines
from frozen_jax.data.rows import StoredRows
from frozen_jax.text.jinja_templates import JinjaTemplate

Templates = Mapping[str, Sequence[JinjaTemplate]]  # by data set; "": of any

_PARSED_ON_OPENING = 100_000  # rows of a file: a mistake is reported before anything runs
_READ_TOGETHER = 256  # rows of a prepared data set
_NO_TEMPLATE = -1  # in place of a template's number


class IndexedRows:
  """The examples of one file or split, by index.

  spec               what was opened, for messages
  dataset            the name of its data set where its rows name none
  datasets           the data sets that its rows name, in the order of their first appearance
  pairs              the (data set, template) pairs that occur
  pair_index         int32 [N], which of them each example is of
  num_without_target how many examples were left out since their target is empty
  stored_names       the fields of its first row, as they are stored
  """

  def __init__(
    self,
    rows: StoredRows,
    spec: str,
    dataset: str,
    *,
    fields: Mapping[str, str],
    templates: Templates,
    targets: bool = True,
  ):
    """Opens the rows of `spec`.

    Args:
      rows: as they are stored. spec, dataset: see the class.
      fields: our name of a field -> its name in the rows; dots lead into nested objects. Those
        count that the first row has.
      templates: by data set.
      targets: whether examples need a target (to predict they need none).

    Raises:
      UserError: no rows; malformed ones among those that are read; no row with a target.
    """
    self.spec, self.dataset = spec, dataset
    self._rows, self._targets, self._templates = rows, targets, templates
    if not len(rows):
      raise UserError(f"{spec} holds no examples; choose another split")
    with waits_for(spec):
      stored = rows[0]
    self.stored_names = tuple(sorted(stored))
    self._fields = fields_present(stored, fields)
    self._templates_used: dict[str, Sequence[JinjaTemplate]] = {}
    first = map_fields(stored, self._fields, rows.describe(0))
    self._names_datasets = "dataset" in first
    if self._names_datasets or "labels" in first or self._templates_of(first):
      self._index_all_rows()
    else:
      self._index_without_reading()

  def __len__(self) -> int:
    return len(self.pair_index)

  def __getitem__(self, index: int) -> Example:
    row, template = (
      (index, _NO_TEMPLATE) if self._entries is None else self._entries[index].tolist()
    )
    where = self._rows.describe(row)
    with waits_for(self.spec):
      stored = self._rows[row]
    fields = map_fields(stored, self._fields, where)
    if template == _NO_TEMPLATE:
      return parse_example(fields, where, self._targets)
    example = self._render(fields, self._templates_of(fields)[template], row)
    if example is None:
      raise UserError(f"{where}: has changed since the run began; give it the same data")
    return example

  @property
  def identity(self) -> str:
    """The data set's name, or of a file a hash of its rows."""
    return self._rows.digest if isinstance(self._rows, JsonLines) else self.dataset

  @functools.cached_property
  def digest(self) -> str:
    """A hash (hex) of the rows' contents and of the fields and templates that apply to them.

    The path or the compression of a file does not matter.
    """
    identity = {
      "rows": self._rows.digest,
      "fields": {ours: theirs for ours, theirs in self._fields.items() if ours != theirs},
      "templates": {
        dataset if self._names_datasets else "": [template.definition for template in templates]
        for dataset, templates in self._templates_used.items()
      },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

  def _index_without_reading(self) -> None:
    """Each row is an example; the first ones of a file are parsed."""
    count = len(self._rows)
    self.datasets: list[str] = []
    self.pairs, self.num_without_target = [(self.dataset, "")], 0
    self._entries: np.ndarray | None = None  # int64 [N, 2]: row and number of the template
    self.pair_index = np.zeros(count, np.int32)
    parsed = min(count, _PARSED_ON_OPENING) if isinstance(self._rows, JsonLines) else 1
    for index in range(parsed):
      self[index]

  def _index_all_rows(self) -> None:
    """One pass over all rows: which examples there are, and which pair each is of."""
    pairs: dict[tuple[str, str], int] = {}
    entries, pair_index, self.num_without_target = [], [], 0
    for row, stored in enumerate(_iterate(self._rows, self.spec)):
      for template, example in self._examples_of(row, stored):
        if example is None or (self._targets and lacks_target(example)):
          self.num_without_target += 1
          continue
        pair = (example["dataset"], example.get("template") or "")
        entries.append((row, template))
        pair_index.append(pairs.setdefault(pair, len(pairs)))
    if not entries:
      raise UserError(f"every row of {self.spec} has an empty target; give rows with targets")
    self._entries = np.array(entries, np.int64)
    self.pairs, self.pair_index = list(pairs), np.array(pair_index, np.int32)
    names = dict.fromkeys(dataset for dataset, _ in pairs)
    self.datasets = list(names) if self._names_datasets or self._templates_used else []

  def _examples_of(
    self, row: int, stored: Mapping[str, Any]
  ) -> Iterator[tuple[int, Example | None]]:
    """(number of the template, example or None if it has no target) for each example of a row."""
    where = self._rows.describe(row)
    fields = map_fields(stored, self._fields, where)
    if self._names_datasets and not isinstance(fields.get("dataset"), str):
      raise UserError(f"{where}: no text `dataset`, which the first row has; add it")
    templates = self._templates_of(fields)
    if not templates:
      yield _NO_TEMPLATE, {"dataset": self.dataset, **parse_example(fields, where, self._targets)}
      return
    self._templates_used[self._dataset_of(fields)] = templates
    for number, template in enumerate(templates):
      yield number, self._render(fields, template, row)

  def _render(self, fields: Mapping[str, Any], template: JinjaTemplate, row: int) -> Example | None:
    """The example that a template makes of a row; None if it has no target."""
    rendered = template.render(fields, self._rows.describe(row), row, self._targets)
    if rendered is None:
      return None
    example = rendered_example(rendered, self._dataset_of(fields), template.name)
    if "id" in fields:
      example["id"] = f"{fields['id']}/{template.name}"
    return example

  def _dataset_of(self, fields: Mapping[str, Any]) -> str:
    return fields["dataset"] if self._names_datasets else self.dataset

  def _templates_of(self, fields: Mapping[str, Any]) -> Sequence[JinjaTemplate]:
    """The templates of the row's data set, else those of a file that names no data set."""
    return self._templates.get(self._dataset_of(fields), self._templates.get("", ()))


def _iterate(rows: StoredRows, spec: str) -> Iterator[dict[str, Any]]:
  """Every row once; rows of prepared data sets are read many at a time, which is faster."""
  for start in range(0, len(rows), _READ_TOGETHER):
    indices = list(range(start, min(start + _READ_TOGETHER, len(rows))))
    with waits_for(spec):
      many = getattr(rows, "__getitems__", None)
      found = [rows[index] for index in indices] if many is None else many(indices)
    yield from found
