"""The forms of an example, and how a row of any source is parsed into one of them.

  {"question": str, "answers": [str, ...]}   the first answer is the one that is trained on
  {"input": str, "target": str}              the input is the whole prompt
  {"text": str}                              for language modelling

Rows of multi-task data are of the second form; their other fields are converted to it:

  "choices": [str, ...]        what the target is one of
  "labels": [int, ...]         which choices are right (of rows without a target)
  "targets": [str, ...]        accepted answers, the first to be trained on
  "definition": str            an instruction, which goes before the input
  "dataset", "template": str   which data set of a mixture, which prompt template

A question may name its kind, by which its figures are given apart:

  "kind": str                  "1_hop"

So every example with an input has `target`, those with several accepted answers `answers` too, and
those with choices `choices`. Other keys are kept.

Answers, targets and choices may be numbers, which become texts; one answer need not be a list, its
key may be "answer" (of rows without choices, where it could be an index), and answers may be
SQuAD's {"text": [...]}. A label below 0 is hidden: the row has no target.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.json_row import accepted_texts, text_of, with_id
from frozen_jax.text.jinja_templates import Rendered

Example = dict[str, Any]
# Fields of built-in rows that are computed from the stored ones: name -> its value for a row.
Derived = Mapping[str, Callable[[Example], Any]]

_FORMS = '{"question", "answers"}, {"input", "target"} or {"text"}'
_KEYS = ("question", "input", "answers", "answer", "target", "targets", "labels", "text")
_OPTIONAL = (
  "answers",
  "choices",
  "targets",
  "labels",
  "definition",
)  # null or empty counts as absent


def map_fields(row: Mapping[str, Any], fields: Mapping[str, str], where: str) -> dict[str, Any]:
  """The row as plain Python values, with `fields` added: our name -> its path, "answer.text".

  Raises UserError beginning with `where` for a field that is not there, and an id that is no name.
  """
  plain = {key: to_python(value) for key, value in row.items()}
  for ours, theirs in fields.items():
    value: Any = plain
    for key in theirs.split("."):
      if not isinstance(value, Mapping) or key not in value:
        near = difflib.get_close_matches(theirs, list(plain), n=2, cutoff=0.6)
        meant = f"did you mean {' or '.join(near)}?; " if near else ""
        known = ", ".join(sorted(plain))
        raise UserError(f"{where}: no field {theirs!r}; {meant}there are: {known}")
      value = value[key]
    plain[ours] = value
  return with_id(plain, where)


def fields_present(row: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, str]:
  """Those of `fields` that count for rows like this one: which it has, or cannot do without.

  A source whose rows have none of them, and are of a known form, keeps its own names; so does a
  field that the row already has under our name.
  """
  has = {ours: theirs.partition(".")[0] in row for ours, theirs in fields.items()}
  if not any(has.values()) and any(key in row for key in ("question", "input", "text")):
    return {}
  return {ours: theirs for ours, theirs in fields.items() if has[ours] or ours not in row}


def parse_example(row: dict[str, Any], where: str, targets: bool = True) -> Example:
  """The row as an example of one of the three forms; UserError naming `where` if it has none.

  With `targets=False` a row needs no answers or target.
  """
  for key in ("question", "input", "text"):
    if row.get(key) is not None and not isinstance(row[key], str):
      raise UserError(f"{where}: {key} is {json.dumps(row[key])[:40]}, no text; write it in quotes")
  if isinstance(row.get("question"), str) and (_answers_key(row) in row or not targets):
    return _parse_question_row(row, where, targets)
  if isinstance(row.get("input"), str):
    example = _parse_input_row(row, where, targets)
    if "target" in example or not targets:
      return example
  if isinstance(row.get("text"), str):
    return row
  if empty := [key for key in _KEYS if key in row and row[key] in (None, "", [])]:
    raise UserError(f"{where}: {' and '.join(empty)} is empty; fill it in or remove the row")
  raise UserError(
    f"{where}: none of the forms {_FORMS}; its keys are {', '.join(sorted(row)) or 'none'}; say"
    " which is which: --config.data.fields=question=KEY,answers=KEY"
  )


def _answers_key(row: dict[str, Any]) -> str:
  """ "answer" in rows that have it alone; beside choices it may be the index of one."""
  alone = "answer" in row and not {"answers", "choices"} & row.keys()
  return "answer" if alone else "answers"


def _parse_question_row(row: dict[str, Any], where: str, targets: bool) -> Example:
  """The answers become texts; without a need for them, those that are null or empty are dropped."""
  if not row["question"].strip():
    raise UserError(f"{where}: the question is empty; fill it in or remove the line")
  key = _answers_key(row)
  others = {name: value for name, value in row.items() if name != key}
  if targets or row.get(key):
    return {**others, "answers": accepted_texts(row[key], key, where)}
  return others


def rendered_example(rendered: Rendered, dataset: str, template: str) -> Example:
  """The example of a row of a data set that a template has rendered."""
  example: Example = {
    "dataset": dataset,
    "template": template,
    "input": rendered.input,
  }
  if rendered.answers:
    example["target"] = rendered.answers[0]
  if len(rendered.answers) > 1:
    example["answers"] = list(rendered.answers)
  if rendered.choices:
    example["choices"] = list(rendered.choices)
  return example


def lacks_target(example: Example) -> bool:
  """Whether a row of multi-task data has an empty target, so that it cannot be trained or scored.

  (T0's TREC rows have, since their labels were hidden.)
  """
  return "dataset" in example and not example.get("target", "-").strip()


def _parse_input_row(row: dict[str, Any], where: str, targets: bool) -> Example:
  """An example with an input: target, answers and choices from the fields that give them."""
  if not row["input"].strip():
    raise UserError(f"{where}: the input is empty; fill it in or remove the line")
  example = {
    key: value for key, value in row.items() if key not in _OPTIONAL or value not in (None, "", [])
  }
  if "choices" in example:
    if not isinstance(example["choices"], list):
      raise UserError(f'{where}: choices is no list of texts; write ["...", "..."]')
    example["choices"] = accepted_texts(example["choices"], "choices", where)
  for name in ("dataset", "template", "definition"):
    if not isinstance(row.get(name, ""), str):
      raise UserError(f"{where}: {name} is no text; write it in quotes")
  _add_target(example, where, targets)
  target, choices = example.get("target"), example.get("choices")
  if choices and target and target not in choices:
    raise UserError(
      f"{where}: the target {target[:60]!r} is not among the choices ({', '.join(choices)[:200]});"
      " add it to them or fix it"
    )
  if definition := example.pop("definition", "").strip():
    example["input"] = f"{definition}\n\n{example['input']}"
  return example


def _add_target(example: Example, where: str, targets: bool) -> None:
  """Gives an example its target, and its accepted answers where it lists them.

  A target is empty where a data set hides it: the row has labels below 0, or names its data set.
  """
  target = example.pop("target", None)
  if isinstance(target, str) and not target.strip() and "dataset" in example:
    example["target"] = target
  elif target is not None:
    example["target"] = text_of(target, "target", where)
  if accepted := _accepted_answers(example, where):
    first = example.setdefault("target", accepted[0])
    example["answers"] = list(dict.fromkeys([first, *accepted]))
  elif targets and "labels" in example and "choices" in example:
    example.setdefault("target", "")  # all labels are hidden


def _accepted_answers(example: Example, where: str) -> list[str]:
  """All accepted answers of a row that lists them; else [], as where all its labels are hidden."""
  for key in ("answers", "targets"):
    if key in example:
      return accepted_texts(example[key], key, where)
  if "labels" not in example or "choices" not in example:
    return []
  labels, choices = example["labels"], example["choices"]
  labels = labels if isinstance(labels, list) else [labels]
  for label in labels:
    if type(label) is not int or label >= len(choices):
      raise UserError(
        f"{where}: label {label!r} is none of the numbers 0 to {len(choices) - 1} of its choices"
      )
  return [choices[label] for label in labels if label >= 0]


def to_python(value: Any) -> Any:
  """Bytes and arrays, as tfds has them, as texts, numbers and lists."""
  if isinstance(value, bytes):
    return value.decode("utf8", errors="replace")
  if isinstance(value, np.ndarray | np.generic):
    return to_python(value.tolist())
  if isinstance(value, list | tuple):
    return [to_python(entry) for entry in value]
  if isinstance(value, Mapping):
    return {key: to_python(entry) for key, entry in value.items()}
  return value
