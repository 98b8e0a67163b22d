"""Modes evaluate, predict and export of a complete run, and the folders that they write."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.run.results.records import table_rows
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


def read(path):
  return json.loads(path.read_text())


def files_of(folder):
  """{path: bytes} of a workdir, without its evaluations."""
  files = (path for path in folder.rglob("*") if path.is_file())
  relative = {path.relative_to(folder): path for path in files}
  return {name: at.read_bytes() for name, at in relative.items() if name.parts[0] != "evaluations"}


@pytest.fixture(scope="module")
def evaluated(program, recursive_run, tmp_path_factory):
  """(workdir, the folder of its evaluation, standard output)."""
  workdir = copied(recursive_run, tmp_path_factory.mktemp("evaluate"))
  out, _ = program.run("recursive.py:smoke", f"--workdir={workdir}", "--mode=evaluate")
  return workdir, workdir / "evaluations" / "world_facts_test", out


def test_evaluate_writes_a_record_of_its_own(evaluated):
  workdir, folder, out = evaluated
  assert [path.name for path in (workdir / "evaluations").iterdir()] == ["world_facts_test"]
  names = {"config.json", "results.json", "predictions.jsonl", "report.png"}
  assert {path.name for path in folder.iterdir()} == names
  assert out.splitlines()[-1] == f"The record is in {folder}."


def test_evaluate_scores_every_adapter_as_training_did(evaluated, recursive_run):
  """What depends on the training alone is not in the record."""
  _, folder, out = evaluated
  ours, theirs = read(folder / "results.json"), read(recursive_run.workdir / "results.json")
  rows, expected = table_rows(ours), table_rows(theirs)
  assert list(rows) == ["zero_shot", "prompt", "baseline", "late_prompt", "control", "finetune"]
  del expected["finetune"]["tokens_per_second"]
  assert rows == expected and ours["paired"] == theirs["paired"]
  table = recursive_run.out.splitlines()[: len(rows) + 1]
  assert out.splitlines()[: len(rows) + 1] == table
  name = "predictions.jsonl"
  assert (folder / name).read_bytes() == (recursive_run.workdir / name).read_bytes()
  training = {"stages", "steps", "seconds", "trainable_parameters", "data", "inputs"}
  assert ours.keys() == theirs.keys() - training
  changing = {"created", "command", "metrics", "units", "device"}
  for key in ours.keys() - changing:
    assert ours[key] == theirs[key], key
  assert ours["units"].items() < theirs["units"].items()
  assert "--mode=evaluate" in ours["command"] and ours["created"] >= theirs["created"]


def test_evaluate_leaves_everything_else_untouched(evaluated, recursive_run):
  workdir, *_ = evaluated
  assert files_of(workdir) == files_of(recursive_run.workdir)


@pytest.fixture
def evaluate_here(call, program, prompt_run, tmp_path):
  """`evaluate_here(*arguments)`: evaluates a copy of the run in this process -> its workdir."""
  workdir = copied(prompt_run, tmp_path)

  def evaluate(*arguments):
    given = (f"--workdir={workdir}", "--mode=evaluate", *arguments)
    status, _, err = call(*program.command("prompt_tuning.py:smoke", *given)[2:])
    assert status == 0, err
    return workdir

  return evaluate


@pytest.mark.parametrize("name", ["..", ".", "-x", "a/b", "../other"])
def test_the_name_of_an_evaluation_stays_in_its_folder(call, prompt_run, name):
  arguments = (f"--workdir={prompt_run.workdir}", "--mode=evaluate", f"--config.evaluation={name}")
  status, _, err = call("--config=configs/prompt_tuning.py:smoke", *arguments)
  assert status == 2 and "write a name of letters" in err[-1]


def test_evaluate_on_other_data(evaluate_here, prompt_run, tmp_path):
  """Each time under another name, or under the one that the config gives."""
  path = tmp_path / "my questions.jsonl"
  rows = [{"question": question, "answers": ["Lima"]} for question in QUESTIONS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name in ([], [], ["--config.evaluation=mine"]):
    workdir = evaluate_here(f"--config.data.test={path}", *name)
  names = {"my_questions", "my_questions-2", "mine"}
  assert {folder.name for folder in (workdir / "evaluations").iterdir()} == names
  for name in names:
    folder = workdir / "evaluations" / name
    assert [
      row["input"] for row in rows_of((folder / "predictions.jsonl").read_text())
    ] == QUESTIONS
    results = read(folder / "results.json")
    assert results["test"] == str(path)
    assert {own["examples"] for own in table_rows(results).values()} == {3}
  assert files_of(workdir) == files_of(prompt_run.workdir)


def test_an_exported_adapter_is_evaluated_too(call, program, prompt_run, tmp_path):
  folder = shutil.copytree(prompt_run.workdir / "adapter", tmp_path / "exported")
  arguments = (f"--workdir={folder}", "--mode=evaluate", "--config.evaluation=mine")
  status, _, err = call(*program.command("prompt_tuning.py:smoke", *arguments)[2:])
  assert status == 0, err
  ours = read(folder / "evaluations" / "mine" / "results.json")
  theirs = read(prompt_run.workdir / "results.json")
  assert ours["metrics"]["exact_match"] == theirs["metrics"]["exact_match"]
  assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-5)


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
  names = {path.name for path in folder.iterdir()}
  assert names == {"README.md", "adapter.json", "adapter.safetensors"}
  both = [
    frozen_jax.load_adapter(path, lm).generate(QUESTIONS, max_new_tokens=6, temperature=1.0, seed=3)
    for path in (run.workdir, folder)
  ]
  assert both[0] == both[1]
  assert any(both[0])


def test_the_workdir_does_not_change(exported):
  run, _ = exported
  assert not (run.workdir / "export").exists()


def test_peft_has_no_form_for_the_first_layers_of_a_model(refused, program, prompt_run):
  said = refused(
    *program.command("prompt_tuning.py:smoke", f"--workdir={prompt_run.workdir}")[2:],
    "--mode=export",
    "--config.export.format=peft",
    "--config.model.num_layers=1",
  )
  assert "PEFT loads whole models" in said and "model.num_layers" in said


def test_a_recursion_has_no_form_in_peft(refused_run, recursive_run):
  said = refused_run(
    "recursive.py:smoke",
    f"--workdir={recursive_run.workdir}",
    "--mode=export",
    "--config.export.format=peft",
  )
  assert "PEFT has no form" in said and "export.format=adapter" in said


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
