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

So every example with an input has `target`, those with several accepted answers `answers` too, and
those with choices `choices`. Other keys are kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.text.jinja_templates import Rendered

Example = dict[str, Any]

_FORMS = '{"question", "answers"}, {"input", "target"} or {"text"}'
_OPTIONAL = (
  "answers",
  "choices",
  "targets",
  "labels",
  "definition",
)  # null or empty counts as absent


def map_fields(row: Mapping[str, Any], fields: Mapping[str, str], where: str) -> dict[str, Any]:
  """The row as plain Python values, with `fields` added: our name -> its path, "answer.text"."""
  plain = {key: _to_python(value) for key, value in row.items()}
  for ours, theirs in fields.items():
    value: Any = plain
    for key in theirs.split("."):
      if not isinstance(value, Mapping) or key not in value:
        raise UserError(f"{where}: no field {theirs!r}; there are: {', '.join(sorted(plain))}")
      value = value[key]
    plain[ours] = value
  return plain


def parse_example(row: dict[str, Any], where: str, targets: bool = True) -> Example:
  """The row as an example of one of the three forms; UserError naming `where` if it has none.

  With `targets=False` a row needs no answers or target.
  """
  if isinstance(row.get("answers"), str):
    row = {**row, "answers": [row["answers"]]}
  if isinstance(row.get("question"), str) and (_is_text_list(row.get("answers")) or not targets):
    if row["question"].strip():
      return row
    raise UserError(f"{where}: the question is empty; fill it in or remove the line")
  if isinstance(row.get("input"), str):
    example = _parse_input_row(row, where)
    if isinstance(example.get("target"), str) or not targets:
      return example
  if isinstance(row.get("text"), str):
    return row
  raise UserError(
    f"{where}: none of the forms {_FORMS}; its keys are {', '.join(sorted(row)) or 'none'}; name"
    " its fields with config.data.fields"
  )


def rendered_example(rendered: Rendered, dataset: str, template: str) -> Example:
  """The example of a row of a data set that a template has rendered."""
  example: Example = {
    "dataset": dataset,
    "template": template,
    "input": rendered.input,
    "target": rendered.answers[0],
  }
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


def _parse_input_row(row: dict[str, Any], where: str) -> Example:
  """An example with an input: target, answers and choices from the fields that give them."""
  if not row["input"].strip():
    raise UserError(f"{where}: the input is empty; fill it in or remove the line")
  example = {
    key: value for key, value in row.items() if key not in _OPTIONAL or value not in (None, "", [])
  }
  if "choices" in example and not _is_text_list(example["choices"]):
    raise UserError(f'{where}: choices is no list of texts; write ["...", "..."]')
  for name in ("dataset", "template", "definition"):
    if not isinstance(row.get(name, ""), str):
      raise UserError(f"{where}: {name} is no text; write it in quotes")
  if accepted := _accepted_answers(example, where):
    example.setdefault("target", accepted[0])
    example["answers"] = accepted
  target, choices = example.get("target"), example.get("choices")
  if choices and isinstance(target, str) and target not in choices:
    raise UserError(
      f"{where}: the target {target[:60]!r} is not among the choices ({', '.join(choices)[:200]});"
      " add it to them or fix it"
    )
  if definition := example.pop("definition", "").strip():
    example["input"] = f"{definition}\n\n{example['input']}"
  return example


def _accepted_answers(example: Example, where: str) -> list[str]:
  """All accepted answers of a row that lists them, the target first; else []."""
  if "answers" in example:
    listed = example["answers"]
  elif "targets" in example:
    listed = example["targets"]
    listed = [listed] if isinstance(listed, str) else listed
  elif "labels" in example and "choices" in example:
    labels, choices = example["labels"], example["choices"]
    labels = labels if isinstance(labels, list) else [labels]
    for label in labels:
      if type(label) is not int or not 0 <= label < len(choices):
        raise UserError(
          f"{where}: label {label!r} is none of the numbers 0 to {len(choices) - 1} of its choices"
        )
    listed = [choices[label] for label in labels]
  else:
    return []
  if not _is_text_list(listed):
    raise UserError(f'{where}: its accepted answers are no list of texts; write ["...", "..."]')
  first = example.get("target")
  return list(dict.fromkeys([*([first] if isinstance(first, str) else []), *listed]))


def _is_text_list(value: Any) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _to_python(value: Any) -> Any:
  """Bytes and arrays, as tfds has them, as texts, numbers and lists."""
  if isinstance(value, bytes):
    return value.decode("utf8", errors="replace")
  if isinstance(value, np.ndarray | np.generic):
    return _to_python(value.tolist())
  if isinstance(value, list | tuple):
    return [_to_python(entry) for entry in value]
  if isinstance(value, Mapping):
    return {key: _to_python(entry) for key, entry in value.items()}
  return value
