"""Each settings field of each section says what it may hold, and is checked before anything else.

Nothing is read meanwhile: neither data nor a model.
"""

import dataclasses
import typing
from collections.abc import Mapping

import pytest

from frozen_jax.config.section import allowed, resolve
from frozen_jax.core.errors import UserError
from frozen_jax.run.defaults import RUN_KEYS
from frozen_jax.run.settings import _ALL_SECTIONS as KINDS


def fields_of(kind, name):
  """(dotted key, field, type) of every field of a section and of those within it."""
  types = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    if dataclasses.is_dataclass(types[field.name]):
      yield from fields_of(types[field.name], f"{name}.{field.name}")
    else:
      yield f"{name}.{field.name}", field, types[field.name]


def number_of(kind):
  """The type of the numbers that a field of that type holds, None where it holds none."""
  parts = [part for part in (kind, *typing.get_args(kind)) if part in (int, float)]
  return parts[-1] if parts else None


FIELDS = {key: (f, kind) for name, one in KINDS.items() for key, f, kind in fields_of(one, name)}
NUMBERS = {key: one for key, one in FIELDS.items() if number_of(one[1])}
CHOICES = {key: one for key, one in FIELDS.items() if allowed(one[0]).choices}
SEVERAL = {key: one for key, one in FIELDS.items() if allowed(one[0]).nonempty}


def nested(key, value):
  """{"a": {"b": value}} of the key a.b."""
  name, _, rest = key.partition(".")
  return {name: nested(rest, value) if rest else value}


def refusal(key, value):
  """What resolving the section of a key says to a value there."""
  name = key.partition(".")[0]
  with pytest.raises(UserError) as error:
    resolve(KINDS[name], nested(key, value)[name], name)
  text = str(error.value)
  assert text.startswith(f"config.{key}") and "\n" not in text
  return text


def in_its_type(kind, value):
  """The value as a field of that type holds it."""
  origin = typing.get_origin(kind)
  if origin is tuple:
    return (value,)
  return {"lm": value} if isinstance(origin, type) and issubclass(origin, Mapping) else value


def test_there_are_fields_of_every_kind():
  assert len(FIELDS) > 100 and len(NUMBERS) > 50 and len(CHOICES) > 12 and len(SEVERAL) > 10
  assert {"lora.rank", "candidates.temperature", "reader.recall_at"} <= NUMBERS.keys()
  assert {"model.dtype", "reader.encoder_dtype", "reader.rankings"} <= CHOICES.keys()


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_bounds_and_refuses_one_below(key):
  field, kind = NUMBERS[key]
  limits = allowed(field)
  least = limits.at_least if limits.above is None else limits.above
  assert least is not None, f"{key} has no lower bound"
  number = number_of(kind)
  below = number(least if limits.above is not None else least - 1)
  assert f"must be {limits.bounds}" in refusal(key, in_its_type(kind, below))
  if limits.at_most is not None:
    assert limits.bounds in refusal(key, in_its_type(kind, number(limits.at_most + 1)))
  if number is float:
    assert "a finite number" in refusal(key, in_its_type(kind, float("nan")))


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_refuses_another_and_names_the_nearest(key):
  field, kind = CHOICES[key]
  for choice in filter(None, allowed(field).choices):
    text = refusal(key, in_its_type(kind, f"{choice}x"))
    assert f"; did you mean {choice}?" in text and f"one of {allowed(field).help()}" in text
  assert "did you mean" not in refusal(key, in_its_type(kind, "zzzzzzzzz"))


@pytest.mark.parametrize("key", SEVERAL)
def test_what_must_not_be_empty(key):
  field, kind = SEVERAL[key]
  assert " is empty; give " in refusal(key, () if typing.get_origin(kind) is tuple else "")


@pytest.mark.parametrize(
  "config, key, value, message",
  [
    ("lora", "lora.rank", "0", "config.lora.rank is 0; it must be at least 1"),
    ("lora", "lora.targets", "()", "config.lora.targets is empty; give some"),
    ("lora", "prompt.length", "0", "config.prompt.length is 0; it must be at least 1"),
    ("lora", "model.dtype", "flaot32", "'flaot32'; did you mean float32?; it is one of float32"),
    ("lora", "model.quantize", "int5", "'int5'; did you mean int"),
    ("lora", "mesh.data", "-1", "config.mesh.data is -1; it must be at least 0"),
    ("lora", "mesh.fsdp", "0", "mesh.data and mesh.fsdp are 0"),
    ("lora", "train.warmup_steps", "99999", "warm-up steps do not fit into"),
    ("lora", "data.template", "no braces", "template 'no braces' is neither"),
    ("lora", "data.fields", "query", "config.data.fields holds 'query'; write ours=theirs"),
    ("lora", "adapters.bottleneck", "0", "config.adapters.bottleneck is 0"),
    ("lora", "export.format", "pefd", "config.export.format is 'pefd'; did you mean peft?"),
    ("lora", "evaluation", "a/b", "config.evaluation is 'a/b'; write a name of letters"),
    ("lora", "predict.input", "", "config.predict.input is empty"),
    ("id_pt", "generator.heads", "3", "generator.heads=3 does not divide"),
    ("p_tuning", "p_tuning.width", "0", "config.p_tuning.width is 0"),
    ("recursive", "recursion.passes", "0", "config.recursion.passes is 0; it must be at least 1"),
    ("recursive", "recursion.connector.dropout", "1", "is 1.0; it must be at least 0 and below 1"),
    ("recursive", "recursion.first_prompt", "frosen", "did you mean frozen?"),
    ("recursive", "stages.finetune.train.steps", "-1", "config.stages.finetune.train.steps is -1"),
    ("recursive", "cascade.compute_budget", "0.5", "config.cascade.compute_budget is 0.5; give"),
    ("textual_recursion", "candidates.temperature", "-1", "is -1.0; it must be above 0"),
    ("textual_recursion", "candidates.top_p", "1.5", "it must be above 0 and at most 1"),
    ("textual_recursion", "candidates.folds", "1", "it must be at least 2"),
    ("frozen_reader", "reader.recall_at", "0", "config.reader.recall_at holds 0"),
    ("frozen_reader", "reader.recall_at", "999", "only config.reader.depth=20 passages"),
    ("frozen_reader", "reader.rankings", "bm25,fusd", "holds 'fusd'; did you mean fused?"),
    ("frozen_reader", "reader.retrievers", "dense", "bm25_1 needs bm25 among config.reader.retr"),
    ("frozen_reader", "reader.re_ranker.lora.rank", "0", "config.reader.re_ranker.lora.rank is 0"),
    ("frozen_reader", "reader.re_ranker.negatives", "0", "told apart from nothing"),
  ],
)
@pytest.mark.parametrize("help", [(), ("--help",)])
def test_a_command_is_refused_with_and_without_help(refused, config, key, value, message, help):
  assert message in refused(f"--config={config}", f"--config.{key}={value}", *help)


def test_keys_of_no_section_have_limits_too():
  assert allowed(RUN_KEYS["export.format"]).choices and allowed(RUN_KEYS["evaluation"]).pattern[0]
