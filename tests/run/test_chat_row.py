"""The row of the untrained LM in its chat form, whose prompts are longer than the plain ones."""

import json
import shutil

import pytest

from tests.run.settings_cases import QUESTIONS
from tests.run.task_files import lines_file

TEMPLATE = "{% for m in messages %}Answer in few words. User: {{m.content}} {% endfor %}A:"
LENGTH = 64  # `data.lengths` of the small program


@pytest.fixture
def chat_model(tiny, tmp_path):
  folder = shutil.copytree(tiny, tmp_path / "model")
  (folder / "chat_template.jinja").write_text(TEMPLATE)
  return folder


def test_it_is_asked_the_same_questions(program, lm, chat_model, tmp_path):
  """Though `data.lengths` hold the plain form alone."""

  def tokens(row):
    text = f"Question: {row['question']}\nAnswer: {row['answers'][0]}"
    return len(lm.tokenizer(text)["input_ids"])

  rows = [dict(row) for row in QUESTIONS]
  for row in rows:
    while tokens(row) < LENGTH - 1:
      row["question"] += "?"
  path = lines_file(tmp_path / "questions.jsonl", *rows)
  data = [f"--config.data.{split}={path}" for split in ("train", "validation", "test")]
  program.run("prompt_tuning.py:smoke", f"--workdir={tmp_path / 'run'}", *data, model=chat_model)
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  chat = results["rows"]["zero_shot_chat"]
  assert chat["examples"] == results["baseline"]["examples"] == len(rows)
  assert chat["loss"] != results["baseline"]["loss"]
