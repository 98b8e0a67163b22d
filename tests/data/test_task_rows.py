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
  "answers, texts",
  [
    (4, ["4"]),
    ([4, "four", 2.5], ["4", "four", "2.5"]),
    ("four", ["four"]),
    ({"text": ["four", "4"], "answer_start": [3, 9]}, ["four", "4"]),
    ({"text": "four", "answer_start": 3}, ["four"]),
    ([{"text": "four", "answer_start": 3}], ["four"]),
  ],
)
def test_answers_of_other_forms(answers, texts):
  for key in ("answers", "answer"):
    row = parse_example({"question": "q", key: answers}, "here")
    assert row == {"question": "q", "answers": texts}
  row = parse_example({"input": "i", "targets": answers}, "here")
  assert (row["target"], row["answers"]) == (texts[0], texts)


def test_numbers_as_targets_and_choices():
  row = {"input": "i", "target": 2, "choices": [1, 2]}
  assert parse_example(row, "here") == {"input": "i", "target": "2", "choices": ["1", "2"]}


@pytest.mark.parametrize(
  "row, message",
  [
    ({"question": "q", "answers": None}, "answers is null"),
    ({"question": "q", "answers": []}, "answers is empty"),
    ({"question": "q", "answers": ""}, "answers is empty"),
    ({"question": "q", "answer": ""}, "answer is empty"),
    ({"question": "q", "choices": ["a", "b"], "answer": 1}, "none of the forms"),
    ({"question": "q", "answers": ["a", " "]}, r"answers\[1\] is empty"),
    ({"question": "q", "answers": [None]}, r"answers\[0\] is null"),
    ({"question": "q", "answers": float("nan")}, "answers is NaN"),
    ({"question": "q", "answers": True}, "answers is true"),
    ({"question": "q", "answers": {"text": [], "answer_start": []}}, r"answers\.text is empty"),
    ({"question": "q", "answers": {"value": "a"}}, r'answers is \{"value": "a"\}, no text'),
    ({"question": 5, "answers": ["a"]}, "question is 5, no text"),
    ({"question": None, "answers": ["a"]}, "question is empty"),
    ({"input": "i", "target": None}, "target is empty"),
    ({"input": "i", "target": ""}, "target is empty"),
    ({"input": "i", "target": ["a"]}, r'target is \["a"\], no text'),
    ({"input": "i", "answers": []}, "answers is empty"),
    ({"input": 3, "target": "a"}, "input is 3, no text"),
    ({"text": None}, "text is empty"),
    ({"text": 3}, "text is 3, no text"),
  ],
)
def test_what_is_empty_or_no_text_is_named_with_its_row_and_key(tmp_path, row, message):
  good = {"question": "q", "answers": ["a"]}
  path = write(tmp_path / "rows.jsonl", [good] * 1500 + [row])
  with pytest.raises(UserError, match=f"rows.jsonl, line 1501: {message}"):
    open_source(path)
  if row.get("question") == "q" and not row.get("answers"):  # to predict it needs no answers
    assert "answers" not in parse_example(row, "here", targets=False)


def test_rows_whose_labels_are_hidden_are_left_out_and_counted(tmp_path):
  rows = [{"input": f"is {n}?", "choices": ["no", "yes"], "labels": n} for n in (0, -1, 1, -100)]
  rows[0]["labels"] = [0, -1]
  for named in ({}, {"dataset": "d"}):
    path = write(tmp_path / "rows.jsonl", [row | named for row in rows])
    source = open_source(path)
    assert [row["target"] for row in source] == ["no", "yes"] and source.num_without_target == 2
    asked = open_source(path, targets=False)
    assert [row.get("target") for row in asked] == ["no", None, "yes", None]


@pytest.mark.parametrize(
  "jinja",
  [
    "{{sentence}} ||| {{answer_choices[label]}}",
    "{{sentence}} ||| The answer is {{answer_choices[label] | lower}}.",
    "{{sentence}} ||| {% if answer_choices[label] == 'yes' %}yes{% else %}no{% endif %}",
    "{{sentence}} ||| {{['no', 'yes'][label]}}",
    "{{sentence}} ||| {{names[label | string | int]}}",
    "{{sentence.split()[-1]}} ||| {{names[label]}}",
  ],
)
def test_templates_of_hidden_labels(tmp_path, jinja):
  """A label below 0 is not the last choice; an index that the template writes is one."""
  text = jinja.replace('"', "'")
  choices = "no ||| yes" if "answer_choices" in jinja and "The" not in jinja else None
  extra = f'    answer_choices: "{choices}"\n' if choices else ""
  if "The" in jinja:
    text = text.replace("answer_choices", "names")
  (tmp_path / "t.yaml").write_text(
    f'dataset: rows\ntemplates:\n  a:\n    name: a\n{extra}    jinja: "{text}"\n'
  )
  rows = [{"sentence": f"it is {n}", "label": n, "names": ["no", "yes"]} for n in (0, 1, -1)]
  path = write(tmp_path / "rows.jsonl", rows)
  source = open_source(path, templates=str(tmp_path / "t.yaml"))
  targets = [row["target"].removeprefix("The answer is ").removesuffix(".") for row in source]
  assert targets == ["no", "yes"] and source.num_without_target == 1
  asked = open_source(path, targets=False, templates=str(tmp_path / "t.yaml"))
  assert len(asked) == 3 and asked[2]["input"].endswith("-1")


def test_fields_count_where_rows_have_them(tmp_path):
  fields = ("question=query", "answers=answer")
  ours = write(tmp_path / "ours.jsonl", [{"question": "q", "answers": ["a"]}])
  theirs = write(tmp_path / "theirs.jsonl", [{"query": "q", "answer": "a"}])
  mixed = write(tmp_path / "mixed.jsonl", [{"question": "q", "answer": "a"}])
  for spec in (ours, theirs, mixed, f"{ours},{theirs},{mixed}"):
    assert all(
      (row["question"], row["answers"]) == ("q", ["a"]) for row in open_source(spec, fields)
    )
  for fields, message in (
    (("question=qeury", "answers=answer"), "no field 'qeury'; did you mean query[?]; there are"),
    (("question=qeury",), "no field 'qeury'"),
    (("answers=answer.text",), "no field 'answer.text'"),
  ):
    with pytest.raises(UserError, match=message):
      open_source(theirs, fields)


def test_files_of_one_name_are_told_apart(tmp_path):
  def file(name, kind="x"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    return write(
      tmp_path / name, [{"question": f"{kind} {n}?", "answers": [kind]} for n in range(2)]
    )

  def datasets(*paths):
    return open_source(",".join(paths)).datasets

  a, b = file("a/train.jsonl"), file("b/train.jsonl")
  assert datasets(a, b) == ("a/train", "b/train")
  assert open_source(f"{a},{b}").dataset_index.tolist() == [0, 0, 1, 1]
  assert datasets(file("a/x/train.jsonl"), file("b/x/train.jsonl")) == ("a/x/train", "b/x/train")
  assert datasets(a, b, file("c/other.jsonl")) == ("a/train", "b/train", "other")
  assert datasets(a, file("a/train.json")) == ("train.jsonl", "train.json")
  with pytest.raises(UserError, match="names a source twice"):
    datasets(a, f"{tmp_path}/b/../a/train.jsonl")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"choices": "no"}, "choices is no list of texts"),
    ({"choices": ["no", None]}, r"choices\[1\] is null, no text"),
    ({"choices": ["no", "maybe"]}, "the target 'yes' is not among the choices"),
    ({"target": None, "choices": ["a"], "labels": [1]}, "label 1 is none of the numbers 0 to 0"),
    ({"target": None, "choices": ["a"], "labels": ["a"]}, "label 'a'"),
    ({"target": None, "choices": ["a"], "labels": [True]}, "label True"),
    ({"target": None, "choices": ["a"], "labels": []}, "labels is empty"),
    ({"target": None, "labels": [0]}, "none of the forms"),
    ({"targets": [True]}, r"targets\[0\] is true, no text"),
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
  source = open_source(write(tmp_path / "rows.jsonl", [{"input": "a", "target": "b"}] * 3))
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
