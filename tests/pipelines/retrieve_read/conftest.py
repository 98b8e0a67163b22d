"""A tiny corpus with its questions, and the config of a reader on them."""

import json
import shutil

import pytest

from frozen_jax.config.config_file import load_config
from tests.run.conftest import CITIES, COUNTRIES, ROOT
from tests.run.task_files import lines_file


@pytest.fixture(scope="session")
def bi_encoder(encoder, tmp_path_factory):
  """The tiny BERT as a sentence encoder: with the folder that says how its states are pooled."""
  folder = tmp_path_factory.mktemp("bi_encoder") / "tiny"
  shutil.copytree(encoder, folder)
  width = json.loads((folder / "config.json").read_text())["hidden_size"]
  kind = "sentence_transformers.models.Pooling"
  modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": kind}]
  (folder / "modules.json").write_text(json.dumps(modules))
  (folder / "1_Pooling").mkdir()
  pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
  (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
  return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  """Files of the corpus and of the questions, by config key."""
  folder = tmp_path_factory.mktemp("open_questions")
  facts = list(zip(COUNTRIES, CITIES, strict=False))
  corpus = [
    {"id": f"{country}-{number}", "title": "", "text": text}
    for country, city in facts
    for number, text in enumerate((f"The capital of {country} is {city}", f"{country} is a land"))
  ]
  questions = [
    {
      "id": country,
      "question": f"What is the capital of {country}?",
      "answers": [city],
      "positive_ids": [f"{country}-0"],
    }
    for country, city in facts
  ]
  return {
    "reader.corpus": lines_file(folder / "corpus.jsonl", *corpus),
    "data.train": lines_file(folder / "train.jsonl", *questions[:5]),
    "data.validation": lines_file(folder / "validation.jsonl", *questions[5:7]),
    "data.test": lines_file(folder / "test.jsonl", *questions[7:]),
  }


@pytest.fixture(scope="session")
def make_config(tiny, bi_encoder, files):
  """`make_config(**{"dotted.key": value})`: the smoke config on the tiny models and files."""

  def make(**changes):
    config = load_config(f"{ROOT}/configs/frozen_reader.py:smoke")
    given = {
      "model.name": str(tiny),
      "mesh.data": 1,
      "prompt.length": 4,
      "data.lengths": (120,),
      "evaluate.max_new_tokens": 8,
      "reader.encoder": str(bi_encoder),
      "reader.re_ranker.base": str(bi_encoder),
      "reader.re_ranker.length": 32,
      "reader.questions": 2,
      "reader.depth": 12,
      "reader.recall_at": (1, 4),
      "reader.budgets": (110,),
      "reader.budget": 110,
      "reader.rankings": ("none", "bm25", "re_ranked", "blended", "gold"),
    }
    for key, value in (given | {k: str(v) for k, v in files.items()} | changes).items():
      config.update_from_flattened_dict({key: value})
    return config

  return make
