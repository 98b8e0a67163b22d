"""What each artifact of a reader depends on: every setting that affects it, and no other."""

import dataclasses
import json
import shutil

import pytest

from frozen_jax import run
from frozen_jax.pipelines.experiment import subsection
from frozen_jax.pipelines.retrieve_read.pipeline import RetrieveRead
from frozen_jax.pipelines.retrieve_read.questions import corpus_fingerprint
from frozen_jax.pipelines.retrieve_read.settings import (
  LmRankingSettings,
  ReaderSettings,
  ReRankerSettings,
  ScoringSettings,
)
from frozen_jax.retrieval.settings import PackingSettings, RetrievalSettings
from frozen_jax.run.settings import resolve_run
from tests.pipelines.artifact_digests import artifact_digests
from tests.pipelines.perturbed import Recorded, perturbed, unaffecting

RANKINGS = {"reader.rankings": ("none", "bm25", "lm", "re_ranked", "blended", "gold")}

# Section -> its name among the dependencies, and the artifacts that have it.
DEPENDENTS = {
  RetrievalSettings: ("retrieval", "retrieved"),
  PackingSettings: ("packing", "packed"),
  LmRankingSettings: ("lm_ranking", "lm_ranked"),
  ScoringSettings: ("scoring", "re_ranked"),
  ReRankerSettings: ("re_ranker", "re_ranker"),
}
SPECIAL = {
  "template.prompt": "{passages} {question}",
  "template.passage": "{text}",
  "template.bare": "- {text}",
  "dtype": "float32",
  "encoder_dtype": "float32",
  "weights": (2.0, 1.0),
  "batch_size": 4,
  "accumulate": 2,
}


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
  """The workdir of a reader whose passages are packed."""
  folder = tmp_path_factory.mktemp("packed") / "run"
  run.train(make_config(**RANKINGS, stop_after="pack"), folder)
  return folder


@pytest.fixture
def changes(make_config, lm, finished, monkeypatch):
  """`changes(reader)`: what these settings of the reader change of the artifacts there."""

  def compare(reader):
    recorded = Recorded(monkeypatch)
    settings = resolve_run(make_config(**RANKINGS, stop_after="pack"))
    settings.pipelines["reader"] = reader
    RetrieveRead(settings, lm, finished).prepare(settings, None)
    return recorded.changes

  return compare


@pytest.fixture
def reader(make_config) -> ReaderSettings:
  return resolve_run(make_config(**RANKINGS)).pipelines["reader"]


def test_nothing_changes_by_itself(changes, reader):
  assert changes(reader) == {}


@pytest.mark.parametrize("kind", DEPENDENTS, ids=lambda kind: kind.__name__)
def test_a_setting_that_affects_an_artifact_changes_its_dependencies(changes, reader, kind):
  of_re_ranker = kind in (ScoringSettings, ReRankerSettings)
  section = subsection(reader.re_ranker if of_re_ranker else reader, kind)
  for name, other in perturbed(section, SPECIAL):
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(kind)}
    if of_re_ranker:
      values = {"re_ranker": dataclasses.replace(reader.re_ranker, **values)}
    entry, artifacts = DEPENDENTS[kind]
    names, dependents = {f"{entry}.{name}"}, {artifacts}
    if of_re_ranker and name in ("dtype", "length"):  # of training and of scoring
      names, dependents = {f"re_ranker.{name}", f"scoring.{name}"}, {"re_ranker", "re_ranked"}
    elif name == "epochs":  # in place of steps
      names.add(f"{entry}.steps")
    elif name.startswith("template."):  # the LM ranks passages as the template puts them
      names, dependents = {f"packing.{name}", name}, {"packed", "lm_ranked"}
    elif name == "retrievers":
      names.add("encoder")  # without the dense one there is none
    found = changes(dataclasses.replace(reader, **values))
    assert {one for changed in found.values() for one in changed} == names, name
    assert {next(of for of in dependents if one.startswith(of)) for one in found} == dependents


def test_settings_that_affect_nothing_leave_the_artifacts_as_they_are(
  make_config, finished, bi_encoder, files, tmp_path
):
  """All of them at once, in a workdir of its own: what is made is equal to the byte."""
  encoder, corpus = tmp_path / "encoder", tmp_path / "corpus.jsonl"
  shutil.copytree(bi_encoder, encoder)
  shutil.copy(files["reader.corpus"], corpus)
  others = {
    "encoder": str(encoder),
    "question_encoder": str(bi_encoder),
    "corpus": str(corpus),
    "re_ranker.base": str(encoder),
    "re_ranker.log_every": 2,
    "re_ranker.checkpoint_every": 1,
    "re_ranker.on_nonfinite": "skip",
    "re_ranker.max_skipped": 3,
    "re_ranker.max_rollbacks": 2,
  }
  assert unaffecting(ReaderSettings()) == set(others)
  changed = {f"reader.{name}": value for name, value in others.items()}
  run.train(make_config(**RANKINGS, **changed, stop_after="pack"), tmp_path / "run")
  assert artifact_digests(tmp_path / "run" / "reader") == artifact_digests(finished / "reader")


def test_packs_leave_room_for_the_longest_prompt_and_answer_of_the_stages(
  make_config, lm, finished, monkeypatch
):
  settings = resolve_run(make_config(**RANKINGS, stop_after="pack"))
  *others, last = settings.stages
  longer = dataclasses.replace(
    last,
    prompt=dataclasses.replace(last.prompt, length=last.prompt.length + 2),
    evaluate=dataclasses.replace(last.evaluate, max_new_tokens=9),
  )
  shorter = dataclasses.replace(last, prompt=dataclasses.replace(last.prompt, length=1))
  for stage, names in ((longer, ["num_virtual_tokens", "max_new_tokens"]), (shorter, [])):
    recorded = Recorded(monkeypatch)
    run_settings = dataclasses.replace(settings, stages=(*others, stage))
    RetrieveRead(run_settings, lm, finished).prepare(run_settings, None)
    assert all(one.startswith("packed") for one in recorded.changes)
    assert all(changed == names for changed in recorded.changes.values())
    assert bool(recorded.changes) == bool(names)


def test_the_re_ranker_depends_on_the_corpus_whose_passages_it_learns_from(finished):
  note = json.loads((finished / "reader" / "re_ranker.meta.json").read_text())
  assert note["dependencies"]["corpus"] == corpus_fingerprint(
    str(resolve_run(json.loads((finished / "config.json").read_text())).pipelines["reader"].corpus)
  )
