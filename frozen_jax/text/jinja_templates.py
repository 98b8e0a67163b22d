"""Prompt templates in the format of promptsource: jinja that renders a row as input and target.

The format is promptsource's (Bach et al., "PromptSource", arXiv 2202.01279): a YAML file with
`dataset`, `subset` and `templates`, where each template has a `name`, a `jinja` text
"INPUT ||| TARGET" over the row's fields, and optionally `answer_choices`, "A ||| B", jinja too.
Four things are stricter than in promptsource: a field that the row lacks is an error, not an empty
text; `choice` (and jinja's `random`) chooses the same for the same row and template every time; a
row's label below 0 (a hidden one) chooses nothing, not the last choice; templates run in jinja's
sandbox.
"""

import collections
import functools
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.filters
import jinja2.sandbox
import yaml

from frozen_jax.core.errors import UserError
from frozen_jax.core.text_file import read_text
from frozen_jax.core.user_path import user_path

_BAR = "|||"
_RENDERING = "frozen_jax rendering"  # a key that no template can name
_ESCAPED_BAR = "\ue000\ue001\ue000"  # for bars in a row's texts; of Unicode's private use area


class Rendered(NamedTuple):
  """A rendered row; `answers` starts with the target, `choices` may be empty."""

  input: str
  answers: tuple[str, ...]
  choices: tuple[str, ...]


class JinjaTemplate:
  """One template, compiled. UserError for a text that is no template; `where` names its file.

  `definition` is what it renders by: name, text and answer choices.
  """

  def __init__(self, name: str, text: str, answer_choices: str | None = None, where: str = ""):
    self.name, self._where = name, where
    self.definition = (name, text, answer_choices)
    if _BAR not in text:
      raise UserError(f"{self}: no {_BAR} between the input and the target; put it there")
    self._text = self._compile(text)
    self._choices = self._compile(answer_choices) if answer_choices else None

  def __str__(self) -> str:
    return f"template {self.name!r}{f' of {self._where}' if self._where else ''}"

  def render(
    self, row: Mapping[str, Any], where: str, seed: object = 0, targets: bool = True
  ) -> Rendered | None:
    """Renders a row; None if that gives no input or no target, as where the row's label is hidden.

    With `targets=False` (to predict) the target may be missing.

    White space at the ends of each part is stripped. Parts after a further ||| are accepted answers
    too. `seed` determines what `choice` chooses. UserError that names the template and `where` for
    a field that the row lacks, any other failure, and a target that is not among the template's
    answer choices.
    """
    hidden = _HiddenLabel if targets else _BlankLabel
    values = _template_value(dict(row), hidden)
    values[_RENDERING] = _Rendering(random.Random(f"{self.name}/{seed}"), hidden)
    try:
      choices = self._render_parts(self._choices, values, where) if self._choices else []
      if choices:
        values["answer_choices"] = _template_value(choices)
      text, *answers = self._render_parts(self._text, values, where)
    except _NoLabel:
      return None
    answers = [answer for answer in dict.fromkeys(answers) if answer]
    if not text or (targets and not answers):
      return None
    if targets and choices and answers[0] not in choices:
      raise UserError(
        f"{where}: {self} gives the target {answers[0][:60]!r}, which is none of its answer choices"
        f" ({', '.join(choices)[:200]}); fix its answer_choices or remove them"
      )
    return Rendered(text, tuple(answers), tuple(dict.fromkeys(choices)))

  def _compile(self, text: str) -> jinja2.Template:
    try:
      return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
      raise UserError(f"{self}: {error.message} (its line {error.lineno}); fix it") from error

  def _render_parts(
    self, template: jinja2.Template, values: dict[str, Any], where: str
  ) -> list[str]:
    try:
      rendered = template.render(values)
    except _NoLabel:
      raise
    except Exception as error:  # whatever the template's expressions raise
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      fields = ", ".join(sorted(key for key in values if key != _RENDERING))
      raise UserError(f"{where}: {self} fails ({reason}); the row has {fields}") from error
    return [part.strip().replace(_ESCAPED_BAR, _BAR) for part in rendered.split(_BAR)]


def load_templates(path: str | pathlib.Path) -> dict[str, tuple[JinjaTemplate, ...]]:
  """The templates of a YAML file, or of all `*.yaml` below a folder, by data set, in file order.

  A data set is named "glue/rte" (`dataset` and `subset`), or "" if a file names none: its templates
  apply to any data set. A file may have several YAML documents. UserError for a file in another
  format, for two templates of one name, and for a data set that two files describe.
  """
  path = user_path(path)
  if not path.exists():
    raise UserError(f"there is no file or folder of templates {path}; check the path")
  files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
  templates: dict[str, tuple[JinjaTemplate, ...]] = {}
  for file in files:
    for document in _documents(file):
      name = _dataset_name(document, file)
      if name in templates:
        raise UserError(f"{file}: templates of {name or 'no data set'!r} a second time; join them")
      templates[name] = _templates(document, file)
  if not templates:
    raise UserError(f"{path} holds no templates; give promptsource's templates.yaml or a folder")
  return templates


def _documents(file: pathlib.Path) -> list[Any]:
  text = read_text(file)
  try:
    return [one for one in yaml.load_all(text, _Loader) if one is not None]
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    line = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", "no YAML")
    raise UserError(f"{file}{line}: malformed YAML ({problem}); fix it") from error


def _dataset_name(document: Any, file: pathlib.Path) -> str:
  if not isinstance(document, Mapping) or not isinstance(document.get("templates"), Mapping):
    raise UserError(f"{file}: no `templates`; write them in the form of promptsource")
  names = [document.get("dataset"), document.get("subset")]
  if not all(name is None or isinstance(name, str) for name in names):
    raise UserError(f"{file}: `dataset` and `subset` must be texts; put them in quotes")
  return "/".join(name for name in names if name)


def _templates(document: Mapping[str, Any], file: pathlib.Path) -> tuple[JinjaTemplate, ...]:
  templates: dict[str, JinjaTemplate] = {}
  for key, entry in document["templates"].items():
    if not isinstance(entry, Mapping) or not isinstance(entry.get("jinja"), str):
      raise UserError(f"{file}: template {key!r} has no text `jinja`; add it")
    name, choices = str(entry.get("name") or key), entry.get("answer_choices")
    if choices is not None and not isinstance(choices, str):
      raise UserError(f"{file}: template {name!r}: answer_choices is no text such as No ||| Yes")
    if name in templates:
      raise UserError(f"{file}: two templates are named {name!r}; rename one")
    templates[name] = JinjaTemplate(name, entry["jinja"], choices, str(file))
  if not templates:
    raise UserError(f"{file}: `templates` is empty; add one or remove the file")
  return tuple(templates.values())


class _Loader(yaml.SafeLoader):
  """Safe YAML in which promptsource's tags are plain mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
  _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


class _NoLabel(Exception):
  """A template has used what a hidden label stands for."""


class _HiddenLabel(int):
  """A number below 0 of a row. What it is the index of may not be used: that raises _NoLabel."""

  def choice(self) -> jinja2.Undefined:
    return jinja2.StrictUndefined("a hidden label", exc=_NoLabel)  # type: ignore[arg-type]


class _BlankLabel(_HiddenLabel):
  """One of which only the input is wanted: what it is the index of is an empty text."""

  def choice(self) -> jinja2.Undefined:
    return jinja2.ChainableUndefined("a hidden label")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Jinja's sandbox, in which a hidden label is the index of nothing."""

  def getitem(self, obj: Any, argument: Any) -> Any:
    if isinstance(argument, _HiddenLabel) and isinstance(obj, list | tuple | str):
      return argument.choice()
    return super().getitem(obj, argument)


class _Rendering(NamedTuple):
  """What the filters need of a row's rendering: random choices, the class of hidden labels."""

  random: random.Random
  hidden: type[_HiddenLabel]


@functools.cache
def _environment() -> jinja2.Environment:
  environment = _Environment(undefined=jinja2.StrictUndefined)
  environment.filters |= {"choice": _choice, "random": _choice, "most_frequent": _most_frequent}
  environment.filters["int"] = _int
  environment.globals = {"range": environment.globals["range"], "zip": zip, "enumerate": enumerate}
  return environment


@jinja2.pass_context
def _int(context: jinja2.runtime.Context, value: Any, default: int = 0, base: int = 10) -> int:
  """Jinja's `int`, for labels that are texts, as those of a table."""
  number = jinja2.filters.do_int(value, default, base)
  return context[_RENDERING].hidden(number) if number < 0 else number


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, items: Sequence[Any]) -> Any:
  """One of the items."""
  return context[_RENDERING].random.choice(list(items))


def _most_frequent(items: Sequence[Any]) -> list[Any]:
  """The items that occur most often, each once, in the order of their first occurrence."""
  counts = collections.Counter(items)
  return [item for item, count in counts.items() if count == max(counts.values())]


def _template_value(value: Any, hidden: type[_HiddenLabel] = _HiddenLabel) -> Any:
  """The value with ||| in its texts replaced, so that they separate no parts, and hidden labels."""
  if isinstance(value, str):
    return value.replace(_BAR, _ESCAPED_BAR) if _BAR in value else value
  if type(value) is int and value < 0:
    return hidden(value)
  if isinstance(value, list | tuple):
    return [_template_value(entry, hidden) for entry in value]
  if isinstance(value, Mapping):
    return {key: _template_value(entry, hidden) for key, entry in value.items()}
  return value
