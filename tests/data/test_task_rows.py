"""Rows of multi-task data: their forms, the data sets of a source, templates, several sources."""

import json
import pathlib

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.examples import parse_example
from frozen_jax.data.sources import open_source

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "multitask"


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def task_row(dataset, template, number, target="yes"):
  return {"dataset": dataset, "template": template, "input": f"is {number}?", "target": target}


def test_a_row_with_choices_stays_as_it_is():
  row = task_row("d", "t", 1) | {"choices": ["no", "yes"]}
  assert parse_example(row, "here") == row


@pytest.mark.parametrize("absent", [None, []])
def test_choices_that_are_not_there(absent):
  row = task_row("d", "t", 1)
  assert parse_example(row | {"choices": absent, "answers": absent}, "here") == row


def test_labels_name_the_right_choices():
  row = {"dataset": "d", "input": "which?", "choices": ["a", "b", "c"], "labels": [2, 0]}
  assert parse_example(row, "here") == row | {"target": "c", "answers": ["c", "a"]}
  assert parse_example(row | {"labels": 0}, "here")["target"] == "a"


def test_several_targets_and_a_definition():
  row = {"dataset": "d", "definition": "Say why.", "input": "rain", "targets": ["x", "y", "x"]}
  assert parse_example(row, "here") == {
    "dataset": "d",
    "input": "Say why.\n\nrain",
    "targets": ["x", "y", "x"],
    "target": "x",
    "answers": ["x", "y"],
  }
  assert parse_example({"input": "i", "targets": "x"}, "here")["answers"] == ["x"]
  assert parse_example({"input": "i", "target": "y", "answers": ["x", "y"]}, "")["answers"] == [
    "y",
    "x",
  ]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"choices": "no"}, "choices is no list of texts"),
    ({"choices": ["no", 1]}, "choices is no list of texts"),
    ({"choices": ["no", "maybe"]}, "the target 'yes' is not among the choices"),
    ({"target": None, "choices": ["a"], "labels": [1]}, "label 1 is none of the numbers 0 to 0"),
    ({"target": None, "choices": ["a"], "labels": [-1]}, "label -1"),
    ({"target": None, "choices": ["a"], "labels": ["a"]}, "label 'a'"),
    ({"target": None, "choices": ["a"], "labels": [True]}, "label True"),
    ({"target": None, "choices": ["a"], "labels": []}, "none of the forms"),
    ({"target": None, "labels": [0]}, "none of the forms"),
    ({"targets": [1]}, "accepted answers are no list of texts"),
    ({"definition": 3}, "definition is no text"),
    ({"template": 3}, "template is no text"),
  ],
)
def test_malformed_rows_name_their_line(tmp_path, change, message):
  row = task_row("d", "t", 1) | change
  row = {key: value for key, value in row.items() if value is not None}
  path = write(tmp_path / "rows.jsonl", [task_row("d", "t", 0), row])
  with pytest.raises(UserError, match=f"rows.jsonl, line 2: .*{message}"):
    open_source(path)


def test_data_sets_and_templates_of_a_source(tmp_path):
  names = [("b", "s"), ("a", "s"), ("b", "t"), ("b", "s")]
  rows = [task_row(*pair, number) for number, pair in enumerate(names)]
  source = open_source(write(tmp_path / "rows.jsonl", rows))
  assert source.datasets == ("b", "a") and source.dataset_names == {"a", "b"}
  assert source.dataset_index.tolist() == [0, 1, 0, 0] and source.dataset_index.dtype == np.int32
  assert source.template_index.tolist() == [0, 1, 2, 0]
  assert source.num_without_target == 0


def test_rows_that_name_no_data_set(tmp_path):
  source = open_source(write(tmp_path / "rows.jsonl", [{"input": "a", "target": ""}] * 3))
  assert source.datasets == () and source.dataset_index.tolist() == [0, 0, 0]
  assert len(source) == 3 and source.dataset_names == {"rows"}


def test_each_row_must_name_its_data_set(tmp_path):
  rows = [task_row("d", "t", 1), {"input": "a", "target": "b"}]
  with pytest.raises(UserError, match="line 2: no text `dataset`"):
    open_source(write(tmp_path / "rows.jsonl", rows))


def test_rows_without_a_target_have_no_position(tmp_path):
  rows = [task_row("d", "t", number, " " if number % 3 == 0 else "x") for number in range(7)]
  path = write(tmp_path / "rows.jsonl", rows)
  source = open_source(path)
  assert [example["input"] for example in source] == ["is 1?", "is 2?", "is 4?", "is 5?"]
  assert source.num_without_target == 3
  assert len(open_source(path, targets=False)) == 7
  with pytest.raises(UserError, match="every row of .* has an empty target"):
    open_source(write(tmp_path / "none.jsonl", rows[:1]))


def test_several_sources(tmp_path):
  named = write(tmp_path / "named.jsonl", [task_row("d", "t", 1), task_row("e", "t", 2)])
  asked = write(tmp_path / "asked.jsonl", [{"query": "what", "reply": "red", "id": "q"}] * 2)
  again = write(tmp_path / "again.jsonl", [task_row("e", "t", 3)])
  fields = ("question=query", "answers=reply")
  source = open_source(f"{named}, {asked},{again}", fields)
  assert source.datasets == ("d", "e", "asked")
  assert source.dataset_index.tolist() == [0, 1, 2, 2, 1]
  assert [example["dataset"] for example in source] == ["d", "e", "asked", "asked", "e"]
  assert [example["id"] for example in source] == ["0", "1", "q", "q", "4"]
  assert source[-3 + 5]["question"] == "what"
  with pytest.raises(IndexError):
    source[5]
  for bad in (f"{named},{named}", f"{named},"):
    with pytest.raises(UserError, match="names a source twice or leaves one out"):
      open_source(bad)


def test_a_comma_in_a_files_name(tmp_path):
  path = write(tmp_path / "a,b.jsonl", [{"text": "red"}])
  assert len(open_source(path)) == 1


def test_a_builtin_among_several(tmp_path, cache):
  path = write(tmp_path / "rows.jsonl", [task_row("d", "t", 1)])
  source = open_source(f"{path},world_facts/test")
  assert source.datasets == ("d", "world_facts")
  assert source[1]["dataset"] == "world_facts" and source[1]["question"]


TEMPLATES = """
dataset: d
templates:
  1: {jinja: "{{q}}? ||| {{a}}", name: plain}
  2: {jinja: "Is {{q}} {{a}}? ||| {{ answer_choices[y] }}", answer_choices: no ||| yes, name: asks}
---
dataset: rest
templates:
  1: {jinja: "{% if a %}Say. {{q}} ||| {{a}}{% endif %}", name: says}
"""


def test_templates_over_sources(tmp_path):
  (tmp_path / "t.yaml").write_text(TEMPLATES)
  rows = [{"q": "1", "a": "red", "y": 1, "id": "r"}, {"q": "2", "a": "", "y": 0}]
  path = write(tmp_path / "d.jsonl", [{"dataset": "d"} | row for row in rows])
  rest = write(tmp_path / "rest.jsonl", rows)
  done = write(tmp_path / "done.jsonl", [task_row("e", "t", 1)])
  source = open_source(f"{path},{rest},{done}", templates=str(tmp_path / "t.yaml"))
  assert [example["input"] for example in source] == [
    "1?",
    "Is 1 red?",
    "Is 2 ?",
    "Say. 1",
    "is 1?",
  ]
  assert source[1] == {
    "dataset": "d",
    "template": "asks",
    "input": "Is 1 red?",
    "target": "yes",
    "choices": ["no", "yes"],
    "id": "r/asks",
  }
  assert source[2]["id"] == "2"
  assert source.datasets == ("d", "rest", "e") and source.num_without_target == 2
  assert source.dataset_index.tolist() == [0, 0, 0, 1, 2]
  assert source.template_index.tolist() == [0, 1, 1, 2, 3]


def test_templates_that_name_no_data_set_are_for_every_row(tmp_path):
  (tmp_path / "t.yaml").write_text("templates: {a: {jinja: '{{q}} ||| {{a | choice}}'}}")
  path = write(tmp_path / "x.jsonl", [{"q": str(n), "a": ["r", "s"]} for n in range(20)])
  source = open_source(path, templates=str(tmp_path / "t.yaml"))
  assert source.datasets == ("x",) and len(source) == 20
  drawn = [example["target"] for example in source]
  assert set(drawn) == {"r", "s"} and drawn == [example["target"] for example in source]
  (tmp_path / "t.yaml").write_text("templates: {a: {jinja: '{{q}} ||| {{b}}'}}")
  with pytest.raises(UserError, match="x.jsonl, line 1: template 'a' of .*'b' is undefined"):
    open_source(path, templates=str(tmp_path / "t.yaml"))


def test_templates_for_other_data_sets_change_nothing_and_say_so(tmp_path, caplog):
  (tmp_path / "t.yaml").write_text(TEMPLATES)
  path = write(tmp_path / "x.jsonl", [task_row("e", "t", 1)])
  assert open_source(path, templates=str(tmp_path / "t.yaml"))[0] == task_row("e", "t", 1) | {
    "id": "0"
  }
  assert "templates are for d, rest; " in caplog.text and "x.jsonl holds e" in caplog.text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data/multitask is not here")
def test_the_shared_multitask_files():
  sizes = {}
  for name in ("t0_validation", "t0_zero_shot", "bigbench_choices", "natural_instructions"):
    source = open_source(str(SHARED / f"{name}.jsonl.gz"))
    sizes[name] = (len(source), len(source.datasets), source.num_without_target)
    assert all(example["target"].strip() for example in source)
  assert sizes == {
    "t0_validation": (4088, 25, 140),
    "t0_zero_shot": (8491, 4, 0),
    "bigbench_choices": (1635, 8, 0),
    "natural_instructions": (17614, 61, 0),
  }
