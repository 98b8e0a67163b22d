"""Where parts start: they are taken over only from where they act on the LM at one position."""

import jax
import numpy as np
import pytest

from frozen_jax.backbones import assemble
from frozen_jax.core.errors import UserError
from frozen_jax.run import train
from frozen_jax.run.initial_parts import given_parts, load_initial_parts
from frozen_jax.run.settings import resolve_run
from tests.run.settings_cases import QUESTIONS, prompt_tuning_config, with_value
from tests.run.task_files import lines_file

CONNECTOR = {"kind": "linear"}
INPUT = {"method": "prompt_tuning"}
LATE = {"method": "prompt_tuning", "prompt": {"layer": "1"}}
AFTER = {"method": "neural_recursion", "frozen_inputs": ["first_prompt=prompt/prompt"]}
WITHIN = {"read": "final", "write": "1", "connector": CONNECTOR}
TWICE = AFTER | {"recursion": WITHIN}
CONTROL = AFTER | {"recursion": WITHIN | {"passes": 1}}
WHOLE = AFTER | {"recursion": {"connector": CONNECTOR}}


@pytest.fixture
def config(tiny, tmp_path):
  """One step, that hardly changes anything."""
  files = [lines_file(tmp_path / f"{name}.jsonl", *QUESTIONS) for name in ("train", "validation")]
  values = prompt_tuning_config(tiny, *files)
  rates = dict.fromkeys(("prompt", "connector"), 1e-9)
  values["train"] |= {"steps": 1, "learning_rate": rates}
  return values


def with_stages(config, **stages):
  return config | {"stage_order": list(stages), "stages": stages}


@pytest.fixture
def adapter_of(config, lm, tmp_path):
  """`adapter_of(stage)`: an adapter of random numbers, as a stage of that entry trains it."""

  def make(entry):
    stage = resolve_run(with_stages(config, prompt=INPUT, last=entry)).stage("last")
    model = stage.tuned_model(lm)
    start = model.method.init(lm, jax.random.key(0))
    draw = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: draw.normal(0, 0.1, leaf.shape).astype(np.float32), start)
    stage.tuned_model(lm, tree).save(tmp_path / "given")
    return tmp_path / "given", tree

  return make


@pytest.mark.parametrize(
  "given, stage, taken",
  [
    (INPUT, INPUT, {"prompt"}),
    (LATE, LATE, {"prompt"}),
    (INPUT, WHOLE, {"prompt"}),  # whose later prompt stands at the input, too
    (TWICE, TWICE, {"prompt", "connector"}),
    (TWICE, CONTROL, {"prompt"}),  # another layer is read
    (WHOLE, TWICE, set()),
    (LATE, TWICE, set()),  # where it is added to the first prompt's states
  ],
)
def test_a_part_is_taken_over_where_it_acts_alike(config, adapter_of, lm, given, stage, taken):
  folder, tree = adapter_of(given)
  # Stage `alike` always has a use for what is given.
  run = resolve_run(with_stages(config, prompt=INPUT, last=stage, alike=given))
  initial = load_initial_parts(str(folder), lm, run.running)
  method = run.stage("last").tuned_model(lm).method
  parts = given_parts(run.stage("last"), method, {}, initial)
  assert parts.keys() == taken
  for part in taken:
    jax.tree.map(np.testing.assert_array_equal, parts[part], tree[part])


@pytest.mark.parametrize("given, stage", [(INPUT, LATE), (LATE, INPUT)])
def test_what_acts_nowhere_alike_is_refused(config, adapter_of, tmp_path, given, stage):
  folder, _ = adapter_of(given)
  config = with_stages(config, prompt=stage) | {"init_from": str(folder)}
  with pytest.raises(UserError, match="holds prompt of prompt_tuning, from which no stage"):
    train(config, tmp_path / "run")


@pytest.mark.parametrize(
  "stage, key, links, message",
  [
    (LATE, "init_from", ["prompt=prompt/prompt"], "acts before the embedded text, and prompt of"),
    (TWICE, "init_from", ["prompt=prompt/prompt"], "layer 1, added to the first prompt's states;"),
    (TWICE, "init_from", ["conector=prompt/prompt"], "names 'conector'; the parts of .*connector"),
    (
      TWICE,
      "frozen_inputs",
      ["frist_prompt=prompt/prompt"],
      "names 'frist_prompt'; .*first_prompt",
    ),
    (TWICE, "init_from", ["prompt=after/prompt"], "stage after does not run before it"),
    (TWICE, "frozen_inputs", [], "reads first_prompt .*last.recursion.first_prompt=none"),
  ],
)
def test_a_link_that_cannot_be_is_refused_before_the_weights(
  config, tmp_path, monkeypatch, stage, key, links, message
):
  monkeypatch.setattr(assemble, "load_params", None)
  config = with_stages(config, prompt=INPUT, last=stage | {key: links}, after=INPUT)
  with pytest.raises(UserError, match=message):
    train(config, tmp_path / "run")


def test_what_is_not_linked_is_missing_whatever_init_from_holds(config, tmp_path, adapter_of):
  folder, _ = adapter_of(TWICE)
  config = with_stages(config, last=TWICE | {"frozen_inputs": []}) | {"init_from": str(folder)}
  with pytest.raises(UserError, match="stage last reads first_prompt as a frozen input"):
    train(config, tmp_path / "run")


def test_without_a_first_prompt_none_is_read(config, lm):
  entry = with_value(TWICE, "recursion.first_prompt", "none")
  stage = resolve_run(with_stages(config, prompt=INPUT, last=entry)).stage("last")
  model = stage.tuned_model(lm)
  given = {"frozen_inputs": {"first_prompt": {"vectors": np.ones((4, lm.config.width))}}}
  assert stage.frozen_inputs == {} and model.method.first_prompt_of({}, given) is None
  # Its own prompt starts as its states within the stack, not at zero.
  start = model.method.init(lm, jax.random.key(0))
  assert np.abs(start["prompt"]["vectors"]).max() > 0.01
