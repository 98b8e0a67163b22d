"""`~` is the home folder wherever a path is given, and never a folder of that name."""

import json

import numpy as np
import pytest

from frozen_jax.config.config_file import load_config
from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import user_path
from frozen_jax.data.sources import open_questions, open_source
from frozen_jax.main import parse
from frozen_jax.models.adapter_folder import write_adapter
from frozen_jax.pipelines.load_adapter import read_stored
from frozen_jax.retrieval.corpus import open_corpus
from frozen_jax.retrieval.fid_rows import read_rows
from frozen_jax.run.results.comparison import compare_runs
from frozen_jax.text.jinja_templates import load_templates

QUESTION = {"question": "what?", "answers": ["a"], "ctxs": []}
METADATA = dict.fromkeys(("method", "model", "frozen_fingerprint"), "x")
VALUES = {"stage_order": ["only"], "stages": {"only": {"method": "prompt_tuning"}}}
CONFIG = f"import ml_collections\ndef get_config(_=0): return ml_collections.ConfigDict({VALUES})\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A home folder, and another current folder, in which nothing may be made."""
  (tmp_path / "home").mkdir()
  (tmp_path / "here").mkdir()
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("FROZEN_JAX_CACHE", "~/cache")
  monkeypatch.chdir(tmp_path / "here")
  yield tmp_path / "home"
  assert list((tmp_path / "here").iterdir()) == []


def test_what_is_read_from_home(home):
  for name in ("a.jsonl", "b.jsonl"):
    (home / name).write_text(json.dumps(QUESTION))
  (home / "c.jsonl").write_text('{"id": "1", "text": "x"}')
  (home / "q.txt").write_text("what?")
  (home / "t.yaml").write_text("dataset: d\ntemplates: {a: {name: a, jinja: 'a ||| b'}}")
  (home / "c.py").write_text(CONFIG)
  assert len(open_source("~/a.jsonl")) == 1
  assert open_source("~/a.jsonl,~/b.jsonl").datasets == ("a", "b")
  assert open_questions("~/q.txt")[0]["question"] == "what?"
  assert open_corpus("~/c.jsonl")[0].id == "1" and (home / "cache" / "corpora").is_dir()
  assert [row["question"] for row in read_rows("~/a.jsonl")] == ["what?"]
  assert load_templates("~/t.yaml").keys() == {"d"}
  assert load_config("~/c.py:smoke").to_dict() == VALUES
  with pytest.raises(UserError, match=f"no such config: {home}/none.py"):
    load_config("~/none.py")
  with pytest.raises(UserError, match=f"no such folder: {home}/run"):
    read_stored("~/run")
  with pytest.raises(UserError, match=f"{home}/run"):
    compare_runs(["~/run"])


def test_what_is_written_to_home(home):
  write_adapter("~/adapter", {"a": np.zeros(1)}, METADATA)
  assert (home / "adapter").is_dir() and cache_dir() == home / "cache"
  (home / "c.py").write_text(CONFIG)
  assert parse(["main", "--config=~/c.py", "--workdir=~/run"]).workdir == str(home / "run")


def test_a_home_that_does_not_exist(home):
  for read in (user_path, open_questions, open_source, open_corpus, load_config):
    with pytest.raises(UserError, match="there is no home folder of that name"):
      read("~nobody-of-this-name/a.jsonl")
