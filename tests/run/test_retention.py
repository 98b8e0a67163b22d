"""Two skills one after the other, as whole programs: what the second leaves of the first."""

import json

import pytest

CAPITALS = {"Peru": "Lima", "Chile": "Santiago", "Kenya": "Nairobi", "Japan": "Tokyo"}
TEXT = "The people of Peru live in Lima and the people of Norway live in Oslo. " * 8


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  asked = [{"question": f"capital of {a}?", "answers": [b]} for a, b in CAPITALS.items()]
  tasks = [
    {"dataset": "of", "template": "a", "input": f"{b} is of", "target": a}
    for a, b in CAPITALS.items()
  ]
  tasks += [
    {"dataset": "yes", "template": "b", "input": f"Is {b} in {a}?", "target": "yes", "choices": c}
    for a, b in CAPITALS.items()
    for c in [["yes", "no"]]
  ]
  return {
    "first": written(folder / "first.jsonl", asked),
    "second": written(folder / "second.jsonl", tasks),
    "general": written(folder / "general.jsonl", [{"text": TEXT}, {"text": TEXT[::-1]}]),
  }


def given(files):
  splits = ("train", "validation", "test")
  return [
    *(f"--config.data.{split}={files['first']}" for split in splits),
    *(f"--config.stages.second.data.{split}={files['second']}" for split in splits),
    "--config.stages.second.data.held_out=()",
    "--config.stages.second.data.lengths=64",
    f"--config.evaluate.general_text={files['general']}",
    "--config.train.learning_rate.lm=1e-3",
  ]


def ran(program, variant, files, folder):
  out, _ = program.run(f"extensibility.py:{variant}", f"--workdir={folder}", *given(files))
  return json.loads((folder / "results.json").read_text()), out


def test_frozen_a_skill_is_left_as_it_was(program, files, tmp_path):
  results, out = ran(program, "smoke", files, tmp_path)
  skill = results["extensibility"]["first"]
  assert skill["identical"] and skill["changed"] == 0 and skill["prompts"] == 4
  assert skill["before"] == skill["after"] and "exact_match" in skill["before"]
  for name in ("first", "second"):
    found = results["forgetting"][name]
    assert found["identical"] and found["before"] == found["after"] and found["change"] == 0
    assert found["with_method"] != found["before"]
  assert "skill first after the stages that follow it: outputs unchanged, bit by bit" in out
  by_task = json.loads((tmp_path / "by_task.json").read_text())
  assert by_task[str(files["second"])]["second"]["datasets"].keys() == {"of", "yes"}


def test_fine_tuned_it_is_not(program, files, tmp_path):
  results, out = ran(program, "fine_tuning_smoke", files, tmp_path)
  skill = results["extensibility"]["first"]
  assert not skill["identical"] and skill["logits_before"] != skill["logits_after"]
  assert skill["before"]["loss"] != skill["after"]["loss"]
  found = results["forgetting"]["second"]
  assert not found["identical"] and found["before"] != found["after"]
  assert found["after"] == pytest.approx(found["with_method"], rel=1e-5)
  assert results["frozen_unchanged"] is True  # the frozen tree itself is another one
  assert "outputs changed" in out


@pytest.mark.parametrize(
  "option, message",
  [
    ("evaluate.skills=second", "after which no stage runs"),
    ("evaluate.skills=other", "names 'other'"),
    ("evaluate.general_text=none.jsonl", "there is no file none.jsonl"),
  ],
)
def test_what_cannot_be_compared(program, files, tmp_path, option, message):
  arguments = (f"--workdir={tmp_path}", *given(files), f"--config.{option}")
  _, err = program.run("extensibility.py:smoke", *arguments, status=2)
  assert err.splitlines()[-1].startswith("error:") and message in err.splitlines()[-1]
