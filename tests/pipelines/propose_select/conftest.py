"""Few questions, with ids that group them, and the config of textual recursion on them."""

import pytest

from frozen_jax.config.config_file import load_config
from tests.run.conftest import CITIES, COUNTRIES, ROOT
from tests.run.task_files import lines_file


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  """Files of questions, two on each country, by config key."""
  folder = tmp_path_factory.mktemp("closed_questions")
  forms = ("What is the capital of {}?", "Which city governs {}?")
  questions = [
    {"id": f"{country}/{n}", "question": form.format(country), "answers": [city]}
    for country, city in zip(COUNTRIES, CITIES, strict=False)
    for n, form in enumerate(forms)
  ]
  return {
    "data.train": lines_file(folder / "train.jsonl", *questions[:10]),
    "data.validation": lines_file(folder / "validation.jsonl", *questions[10:14]),
    "data.test": lines_file(folder / "test.jsonl", *questions[14:]),
  }


@pytest.fixture(scope="session")
def make_config(tiny, files):
  """`make_config(**{"dotted.key": value})`: the smoke config on the tiny model and files."""

  def make(**changes):
    config = load_config(f"{ROOT}/configs/textual_recursion.py:smoke")
    given = {
      "model.name": str(tiny),
      "mesh.data": 1,
      "prompt.length": 4,
      "data.lengths": (100,),
      "evaluate.max_new_tokens": 4,
      "candidates.max_candidates": 3,
      "candidates.questions": 8,
    }
    for key, value in (given | {k: str(v) for k, v in files.items()} | changes).items():
      config.update_from_flattened_dict({key: value})
    return config

  return make
