"""`export.format=cross_encoder`: the re-ranker of a reader's run, in sentence-transformers."""

import re

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from frozen_jax import run
from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.retrieve_read.re_rank import open_scorer
from frozen_jax.run.settings import resolve_run
from frozen_jax.sharding.mesh import make_mesh
from tests.run.settings_cases import with_value

CHANGES = {"stop_after": "re_ranker", "reader.re_ranker.dtype": "float32"}
PAIRS = [("What is the capital of Peru?", text) for text in ("Peru is a land", "Lima", "Oslo")]


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
  """(config, workdir) of a run up to its trained re-ranker."""
  config, workdir = make_config(**CHANGES), tmp_path_factory.mktemp("reader") / "run"
  run.train(config, workdir)
  return config, workdir


def to(config, folder):
  config = with_value(config, "export.format", "cross_encoder")
  return with_value(config, "export.folder", str(folder))


def test_it_gives_the_same_scores_there(trained, tmp_path, capsys):
  config, workdir = trained
  target = tmp_path / "out"
  target.mkdir()
  for stale in ("modules.json", "model-00001-of-00002.safetensors"):
    (target / stale).write_text("{}")
  assert run.export(to(config, target), workdir) == {
    "folder": str(target),
    "format": "cross_encoder",
  }
  assert f"The re-ranker is in {target}" in capsys.readouterr().out
  settings = resolve_run(config).pipelines["reader"].re_ranker
  ours = open_scorer(workdir / "reader" / "re_ranker", settings, make_mesh()).scores(PAIRS)
  card = (target / "README.md").read_text()
  lines = re.search(r"\n\n((?:    .*\n|\n)+)", card.partition("as a score")[2])[1]
  found = {}
  exec(re.sub("^    ", "", lines, flags=re.M).replace("FOLDER", str(target)), found)
  assert np.shape(found["scores"]) == (1,)
  theirs = CrossEncoder(str(target), device="cpu").predict(PAIRS)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert np.ptp(theirs) > 1e-3


def test_what_is_no_re_ranker_is_refused(trained, make_config, tmp_path):
  config, workdir = trained
  with pytest.raises(UserError, match=r"holds no re-ranker; configs/frozen_reader.py trains one"):
    run.export(to(config, tmp_path / "out"), tmp_path / "empty")
  with pytest.raises(UserError, match="is the workdir itself"):
    run.export(to(config, workdir), workdir)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_one_is_refused(trained, tmp_path, name):
  config, workdir = trained
  stored = workdir / "reader" / "re_ranker" / name
  whole = stored.read_bytes()
  stored.write_bytes(whole[: len(whole) // 2])
  try:
    with pytest.raises(UserError):
      run.export(to(config, tmp_path / "out"), workdir)
  finally:
    stored.write_bytes(whole)
  assert not (tmp_path / "out").exists()
