"""What each artifact of textual recursion depends on: every setting that affects it."""

import dataclasses
import shutil

import pytest

import frozen_jax
from frozen_jax.data.settings import DataSettings
from frozen_jax.models.inputs import first_questions
from frozen_jax.pipelines.experiment import TrainedStage, subsection
from frozen_jax.pipelines.propose_select import pipeline
from frozen_jax.pipelines.propose_select.pipeline import ProposeSelect
from frozen_jax.pipelines.propose_select.settings import CandidateRendering, CandidateSampling
from frozen_jax.run.settings import resolve_run
from tests.pipelines.perturbed import Recorded, perturbed, unaffecting
from tests.run.settings_cases import QUESTIONS
from tests.run.task_files import lines_file

# Section -> its name among the dependencies, and the artifacts that have it.
DEPENDENTS = {
  CandidateSampling: ("sampling", "sampled"),
  CandidateRendering: ("rendering", "rendered"),
}
SPECIAL = {
  "temperature": 0.5,
  "top_p": 0.5,
  "template.prompt": "{question} {candidates}",
  "template.candidate": "{text}",
}


@pytest.fixture(scope="module")
def own_finished(finished, tmp_path_factory):
  """A copy of the workdir of a finished run."""
  return shutil.copytree(finished, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def changes(make_config, lm, own_finished, monkeypatch):
  """`changes(**values)`: what these settings of the candidates change of the artifacts there."""
  model = frozen_jax.load_adapter(own_finished / "adapters" / "answer", lm)

  def compare(**values):
    recorded = Recorded(monkeypatch)
    settings = resolve_run(make_config())
    candidates = dataclasses.replace(settings.pipelines["candidates"], **values)
    settings.pipelines["candidates"] = candidates
    proposer, last = settings.stages
    trained = TrainedStage(proposer, model, None)
    pipeline = ProposeSelect(settings, lm, own_finished)
    pipeline.stage(last, {proposer.name: trained}, lambda stage: trained)
    for name in ("sampled_fold0.jsonl", "sampled_fold1.jsonl"):  # by prompts of their own
      assert "trained" in recorded.changes[name]
      recorded.changes[name].remove("trained")
    return {name: names for name, names in recorded.changes.items() if names}

  return compare


def test_nothing_changes_by_itself(changes):
  assert changes() == {}


@pytest.mark.parametrize("kind", DEPENDENTS, ids=lambda kind: kind.__name__)
def test_a_setting_that_affects_an_artifact_changes_its_dependencies(changes, make_config, kind):
  entry, artifact = DEPENDENTS[kind]
  section = subsection(resolve_run(make_config()).pipelines["candidates"], kind)
  assert not unaffecting(section)
  for name, other in perturbed(section, SPECIAL):
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(kind)}
    found = changes(**values)
    assert found and all(names == [f"{entry}.{name}"] for names in found.values())
    assert all(one.startswith(artifact) for one in found) and f"{artifact}_test.jsonl" in found


@pytest.mark.parametrize(
  "name, value, names",
  [
    ("permutations", 3, {"rendered_train"}),
    ("learn_from", "right", {"rendered_train", "rendered_validation"}),
  ],
)
def test_what_the_training_texts_depend_on(changes, name, value, names):
  found = changes(**{name: value})
  assert {one.removesuffix(".jsonl") for one in found} == names
  assert all(changed == [name] for changed in found.values())


def test_what_is_told_of_a_question_is_in_no_artifact(tmp_path):
  """So those of runs from before there were kinds stay valid."""
  plain, named = (
    lines_file(tmp_path / f"{name}.jsonl", *(row | more for row in QUESTIONS))
    for name, more in (("plain", {}), ("named", {"kind": "1_hop", "first_hop": ["Lima"]}))
  )
  assert first_questions(DataSettings(), str(named))[0]["kind"] == "1_hop"
  of_file = lambda path: pipeline._rows_digest(pipeline._questions(DataSettings(), str(path)))
  assert of_file(named) == of_file(plain)
