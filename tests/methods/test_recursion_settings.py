"""Where a recursion reads and writes: by number, by fraction, by name; and what is refused."""

import dataclasses

import pytest

from frozen_jax.config.section import resolve
from frozen_jax.core.errors import UserError
from frozen_jax.methods import METHODS
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.recirculation import Looped, LoopedSettings
from frozen_jax.methods.recursion_settings import ConnectorSettings, RecursionSettings, layers_of
from frozen_jax.modules.settings import PromptSettings
from tests.methods.tiny import base

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
  "read, write, expected",
  [
    ("final", "embeddings", (0, None)),
    ("24", "6", (6, 24)),
    ("0.8", "0.2", (6, 24)),
    (".5", "0", (0, 15)),
    ("30", "29", (29, None)),
    ("1.0", "0.0", (0, None)),
  ],
)
def test_layers_of_a_model_of_thirty(read, write, expected):
  assert layers_of(RecursionSettings(read=read, write=write), 30) == expected


@pytest.mark.parametrize(
  "read, write, message",
  [
    ("31", "6", "recursion.read is '31'; this model has 30 layers"),
    ("final", "30", "recursion.write is '30': no layer would run after it"),
    ("final", "final", "no layer would run after it"),
    ("6", "6", "no layer is between"),
    ("embeddings", "0.5", "no layer is between"),
  ],
)
def test_layers_that_cannot_be(read, write, message):
  with pytest.raises(UserError, match=message):
    layers_of(RecursionSettings(read=read, write=write), 30)


@pytest.mark.parametrize("value", ["", "-1", "1.5", "2.0", "six", "0.2.1"])
def test_what_is_no_layer(value):
  for section in (
    lambda: RecursionSettings(write=value),
    lambda: PromptSettings(layer=value),
    lambda: LoopedSettings(stop=value),
  ):
    with pytest.raises(UserError, match="write a number of layers"):
      section()


def test_one_pass_reads_where_it_is_written():
  assert layers_of(RecursionSettings(passes=1, write="6", read="2"), 30) == (6, None)


@pytest.mark.parametrize(
  "trained, given, used", [(2, 0, 2), (2, 3, 3), (3, 2, 2), (1, 3, 1), (4, 4, 4)]
)
def test_a_model_of_several_passes_runs_as_often_as_is_asked(trained, given, used):
  own = RecursionSettings(passes=trained, read="2", predict_passes=7)
  asked = RecursionSettings(passes=5, read="final", predict_passes=given)
  assert own.as_used(asked) == dataclasses.replace(own, passes=used)
  assert PromptSettings(length=3).as_used(PromptSettings(length=9)) == PromptSettings(length=3)


def test_no_connector_joins_no_passes():
  with pytest.raises(UserError, match="recursion.passes=1"):
    RecursionSettings(connector=ConnectorSettings(kind="none"))


@pytest.mark.parametrize("kind", ["linear", "concat", "mix", "tokens"])
def test_what_starts_from_zero_does_not_stand_alone(kind):
  connector = ConnectorSettings(kind=kind)
  RecursionSettings(connector=connector)
  with pytest.raises(UserError, match=f"kind={kind} starts from zero"):
    RecursionSettings(connector=connector, input_skip=False)


@pytest.mark.parametrize("name", ["p_tuning", "textual_recursion", "neural_recursion"])
def test_methods_of_one_prompt_refuse_one_a_data_set(name):
  method = METHODS[name]
  sections = {key: resolve(kind, {}, key) for key, kind in method.sections.items()}
  with pytest.raises(UserError, match=f"{name} has one prompt.*prompt.per_task=False"):
    method.build(base(), sections | {"prompt": PromptSettings(per_task=True)}, datasets=("a",))


@pytest.mark.parametrize(
  "name", ["p_tuning", "prefix_tuning", "textual_recursion", "neural_recursion"]
)
def test_methods_without_late_prompts_say_so(name):
  method = METHODS[name]
  sections = {key: resolve(kind, {}, key) for key, kind in method.sections.items()}
  method.build(base(), sections)
  with pytest.raises(UserError, match=f"prompt.layer is '0.4', which {name} does not have"):
    method.build(base(), sections | {"prompt": PromptSettings(layer="0.4")})


def test_other_methods_name_the_key_that_is_wrong():
  with pytest.raises(UserError, match="prompt.layer is '9'; this model has 3 layers"):
    PromptTuning.build(base(), {"prompt": PromptSettings(layer="9")})
  with pytest.raises(UserError, match="looped.stop is '1' and looped.start '2'"):
    Looped.build(base(), {"looped": LoopedSettings(start="2", stop="1")})
