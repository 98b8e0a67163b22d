"""Few questions, with ids that group them, the config of textual recursion on them, and its run."""

import pytest

from frozen_jax import run
from frozen_jax.config.config_file import load_config
from tests.run.conftest import CITIES, COUNTRIES, ROOT
from tests.run.task_files import lines_file


@pytest.fixture(scope="session")
def files(shared):
  """Files of questions, two on each country, by config key."""
  folder = shared("closed_questions", _write_questions)
  return {f"data.{split}": folder / f"{split}.jsonl" for split in ("train", "validation", "test")}


def _write_questions(folder):
  folder.mkdir(exist_ok=True)
  forms = ("What is the capital of {}?", "Which city governs {}?")
  questions = [
    {"id": f"{country}/{n}", "question": form.format(country), "answers": [city]}
    for country, city in zip(COUNTRIES, CITIES, strict=False)
    for n, form in enumerate(forms)
  ]
  lines_file(folder / "train.jsonl", *questions[:10])
  lines_file(folder / "validation.jsonl", *questions[10:14])
  lines_file(folder / "test.jsonl", *questions[14:])


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


@pytest.fixture(scope="session")
def finished(make_config, shared):
  """The workdir of a finished run, of all processes of pytest: copy it to change it."""
  return shared("textual_run", lambda folder: run.train(make_config(), folder))
