"""Modes evaluate, predict and export of a complete run, and the folders that they write."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.tools import ask

QUESTIONS = ["What is the capital of Peru?", "Which people live in Cairo?", "¿Dónde está Lima?"]


def copied(run, folder):
  return shutil.copytree(run.workdir, folder / "run")


def rows_of(text):
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def predicted(program, prompt_run, tmp_path_factory):
  """(workdir, standard output, standard error) of questions from standard input."""
  workdir = copied(prompt_run, tmp_path_factory.mktemp("predict"))
  mine = json.dumps({"id": "mine", "question": QUESTIONS[2], "answers": ["Perú"]})
  text = f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n{mine}\n"
  arguments = (f"--workdir={workdir}", "--mode=predict")
  return workdir, *program.run("prompt_tuning.py:smoke", *arguments, text=text)


def test_a_finished_run_is_asked_at_the_terminal(predicted, capsys):
  workdir, out, _ = predicted
  assert ask.main([str(workdir), QUESTIONS[0]]) == 0
  assert capsys.readouterr().out.strip() == rows_of(out)[0]["prediction"]


def test_predict_prints_json_lines_and_nothing_else(predicted):
  _, out, _ = predicted
  rows = rows_of(out)
  assert [row["input"] for row in rows] == QUESTIONS
  assert [row["id"] for row in rows] == ["1", "3", "mine"]
  assert [row.get("answers") for row in rows] == [None, None, ["Perú"]]
  assert all(isinstance(row["prediction"], str) for row in rows)


def test_predict_writes_what_it_prints(predicted):
  workdir, out, _ = predicted
  assert (workdir / "predictions.jsonl").read_text("utf8") == out


def test_predict_leaves_the_results_alone(predicted, prompt_run):
  for name in ("results.json", "metrics.jsonl", "config.json"):
    assert (predicted[0] / name).read_bytes() == (prompt_run.workdir / name).read_bytes()


def test_the_adapter_in_python_gives_the_same_answers(predicted, prompt_run, lm):
  adapter = frozen_jax.load_adapter(prompt_run.workdir, lm)
  answers = adapter.generate(QUESTIONS, max_new_tokens=16)
  assert answers == [row["prediction"] for row in rows_of(predicted[1])]


def test_predict_reads_a_file(program, recursive_run, tmp_path):
  workdir = copied(recursive_run, tmp_path)
  path = tmp_path / "questions.txt"
  path.write_text("\n".join(QUESTIONS[:2]))
  out, _ = program.run(
    "recursive.py:smoke",
    f"--workdir={workdir}",
    "--mode=predict",
    f"--config.predict.input={path}",
  )
  assert [row["input"] for row in rows_of(out)] == QUESTIONS[:2]


def test_evaluate_scores_the_test_data_again(program, recursive_run, tmp_path):
  workdir = copied(recursive_run, tmp_path)
  before = json.loads((workdir / "results.json").read_text())
  predictions = (workdir / "predictions.jsonl").read_bytes()
  (workdir / "predictions.jsonl").unlink()
  out, _ = program.run("recursive.py:smoke", f"--workdir={workdir}", "--mode=evaluate")
  after = json.loads((workdir / "results.json").read_text())
  assert after == before
  assert (workdir / "predictions.jsonl").read_bytes() == predictions
  assert out.splitlines()[1].startswith("neural_recursion ")


def test_evaluate_on_other_data(program, prompt_run, tmp_path):
  workdir = copied(prompt_run, tmp_path)
  path = tmp_path / "mine.jsonl"
  rows = [{"question": question, "answers": ["Lima"]} for question in QUESTIONS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  program.run(
    "prompt_tuning.py:smoke",
    f"--workdir={workdir}",
    "--mode=evaluate",
    f"--config.data.test={path}",
  )
  found = [json.loads(line) for line in (workdir / "predictions.jsonl").open()]
  assert [row["input"] for row in found] == QUESTIONS
  assert json.loads((workdir / "results.json").read_text())["metrics"]["examples"] == 3


@pytest.fixture(scope="module", params=["prompt_run", "recursive_run"])
def exported(request, program, tmp_path_factory):
  """(a complete run, the folder that its adapter was exported to)."""
  run = request.getfixturevalue(request.param)
  config = {"prompt_run": "prompt_tuning", "recursive_run": "recursive"}[request.param]
  folder = tmp_path_factory.mktemp("export") / "mine"
  out, _ = program.run(
    f"{config}.py:smoke",
    f"--workdir={run.workdir}",
    "--mode=export",
    f"--config.export.folder={folder}",
  )
  assert str(folder) in out
  return run, folder


def test_an_exported_adapter_answers_like_its_workdir(exported, lm):
  run, folder = exported
  assert {path.name for path in folder.iterdir()} == {"adapter.json", "adapter.safetensors"}
  both = [
    frozen_jax.load_adapter(path, lm).generate(QUESTIONS, max_new_tokens=6, temperature=1.0, seed=3)
    for path in (run.workdir, folder)
  ]
  assert both[0] == both[1]
  assert any(both[0])


def test_the_workdir_does_not_change(exported):
  run, _ = exported
  assert not (run.workdir / "export").exists()


def test_a_prompt_in_peft_gives_the_same_logits(program, prompt_run, lm, tiny, tmp_path):
  folder = tmp_path / "peft"
  program.run(
    "prompt_tuning.py:smoke",
    f"--workdir={prompt_run.workdir}",
    "--mode=export",
    "--config.export.format=peft",
    f"--config.export.folder={folder}",
  )
  vectors = frozen_jax.load_adapter(prompt_run.workdir, lm).trained["prompt"]["vectors"]
  ids = np.array([lm.tokenizer(QUESTIONS[0])["input_ids"]])
  x = np.concatenate([np.asarray(vectors)[None], lm.embed(ids)], axis=1)
  from frozen_jax.backbones import decoder

  ours = decoder.logits(lm.params, lm.config, lm.hidden(x))
  with torch.no_grad():
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    theirs = model(input_ids=torch.from_numpy(ids)).logits.numpy()
  np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)
