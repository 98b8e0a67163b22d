"""Sources: each kind opens, and each mistake of a user names its place."""

import gzip
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from frozen_jax.core.errors import UserError
from frozen_jax.data.builders.prepare import quiet
from frozen_jax.data.builtin import BUILTIN_SPECS
from frozen_jax.data.sources import open_questions, open_source, read_questions

QUESTION = {"question": "what is 1", "answers": ["red", "green"], "id": "q", "positive_ids": [3]}
INPUT = {"input": "what is 2", "target": "blue", "dataset": "d"}
TEXT = {"text": "red green", "source": "s"}


def write(path, lines):
  text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
  return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines(tmp_path, name):
  path = write(tmp_path / name, [QUESTION, "", INPUT, TEXT])
  source = open_source(path)
  assert len(source) == 3 and source.name == path
  assert source[0] == QUESTION
  assert source[2] == TEXT | {"id": "2"}
  assert [example["id"] for example in source] == ["q", "1", "2"]
  with pytest.raises(IndexError):
    source[3]


def test_file_without_a_last_line_end(tmp_path):
  (tmp_path / "rows.jsonl").write_text(json.dumps(TEXT) + "\r\n" + json.dumps(TEXT))
  assert len(open_source(str(tmp_path / "rows.jsonl"))) == 2


def test_one_answer_need_not_be_a_list(tmp_path):
  path = write(tmp_path / "rows.jsonl", [{"question": "q", "answers": "red"}])
  assert open_source(path)[0]["answers"] == ["red"]


def test_fields_are_mapped(tmp_path):
  row = {"query": "what", "answer": {"text": ["red"]}}
  path = write(tmp_path / "rows.jsonl", [row])
  example = open_source(path, ("question=query", "answers=answer.text"))[0]
  assert (example["question"], example["answers"]) == ("what", ["red"])
  with pytest.raises(
    UserError, match=r"line 1: no field 'answer\.texts'; there are: answer, query"
  ):
    open_source(path, {"question": "query", "answers": "answer.texts"})
  with pytest.raises(UserError, match="not of the form"):
    open_source(path, ("question",))


@pytest.mark.parametrize(
  "lines, message",
  [
    ([TEXT, "", '{"text": '], "rows.jsonl, line 3: malformed JSON"),
    ([TEXT, "[1]"], "line 2: a JSON list, not an object"),
    ([TEXT, {"question": "q"}], r'line 2: none of the forms \{"question", "answers"\}'),
    ([{"question": "q", "answers": []}], "line 1: none of the forms"),
    ([{"question": "q", "answers": [1]}], "line 1: none of the forms"),
    ([{"input": "x"}], "line 1: none of the forms.*its keys are input"),
    ([TEXT, {"question": " ", "answers": ["a"]}], "line 2: the question is empty"),
    ([{"input": "", "target": "a"}], "line 1: the input is empty"),
    ([""], "holds no examples"),
  ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_mistakes_name_their_line(tmp_path, lines, message, packed):
  path = write(tmp_path / f"rows.jsonl{packed}", lines)
  with pytest.raises(UserError, match=message.replace("rows.jsonl", f"rows.jsonl{packed}")):
    open_source(path)


def test_text_that_is_not_utf8(tmp_path):
  (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
  with pytest.raises(UserError, match=r"line 2: malformed JSON \(not UTF-8 text\)"):
    open_source(str(tmp_path / "rows.jsonl"))


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(UserError, match="there is no file .*absent.jsonl"):
    open_source(str(tmp_path / "absent.jsonl"))
  (tmp_path / "empty.jsonl").write_text("")
  with pytest.raises(UserError, match="empty.jsonl holds no examples"):
    open_source(str(tmp_path / "empty.jsonl"))
  whole = gzip.compress(json.dumps(TEXT).encode() * 100)
  for name, data in (("cut", whole[:-20]), ("no", b"plain")):
    (tmp_path / f"{name}.jsonl.gz").write_bytes(data)
    with pytest.raises(UserError, match="damaged or truncated gzip"):
      open_source(str(tmp_path / f"{name}.jsonl.gz"))
  (tmp_path / "folder.jsonl").mkdir()
  with pytest.raises(UserError, match="cannot read"):
    open_source(str(tmp_path / "folder.jsonl"))


def test_late_lines_are_checked_when_read(tmp_path, monkeypatch):
  monkeypatch.setattr("frozen_jax.data.json_lines._PARSED_ON_OPENING", 2)
  monkeypatch.setattr("frozen_jax.data.indexed_rows._PARSED_ON_OPENING", 2)
  source = open_source(write(tmp_path / "rows.jsonl", [TEXT, TEXT, TEXT, "{"]))
  assert source[2]["text"] == TEXT["text"]
  with pytest.raises(UserError, match="line 4"):
    source[3]


@pytest.mark.parametrize("name", ["world_fact/train", "world_facts", "world_facts/dev", "nothing"])
def test_unknown_names_list_the_known(name):
  with pytest.raises(UserError) as raised:
    open_source(name)
  assert all(known in str(raised.value) for known in BUILTIN_SPECS)


def test_questions_to_predict():
  lines = [
    "What is red?",
    "",
    '{"question": "What is blue?", "answers": ["a"], "id": "b"}',
    '{"input": "x"}',
  ]
  assert read_questions(lines, "here") == [
    {"question": "What is red?", "id": "1"},
    {"question": "What is blue?", "answers": ["a"], "id": "b"},
    {"input": "x", "id": "4"},
  ]
  with pytest.raises(UserError, match="here, line 2: malformed JSON"):
    read_questions(["q", "{x"], "here")
  with pytest.raises(UserError, match="here holds no questions"):
    read_questions([" "], "here")


def test_questions_from_files_and_standard_input(tmp_path, monkeypatch):
  asked = [{"question": "what", "id": "1"}, {"question": "who", "id": "2"}]
  (tmp_path / "plain.txt").write_text("what\nwho\n")
  assert list(open_questions(str(tmp_path / "plain.txt"))) == asked
  packed = write(tmp_path / "rows.jsonl.gz", [{"q": "what"}, {"q": "who"}])
  assert [row["question"] for row in open_questions(packed, ("question=q",))] == ["what", "who"]
  monkeypatch.setattr("sys.stdin", io.StringIO("what\nwho"))
  assert open_questions("-") == asked
  with pytest.raises(UserError, match="there is no file .*absent.txt"):
    open_questions(str(tmp_path / "absent.txt"))
  bad = write(tmp_path / "bad.jsonl", [{"question": "what"}, "{"])
  with pytest.raises(UserError, match="bad.jsonl, line 2: malformed JSON"):
    open_questions(bad)


class TinyColours(tfds.core.GeneratorBasedBuilder):
  """Two rows under names of their own."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "query": tfds.features.Text(),
      "answer": {"text": tfds.features.Sequence(tfds.features.Text())},
      "number": np.int64,
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for index in range(2):
      yield index, {"query": f"é{index}", "answer": {"text": ["red", "blue"]}, "number": index}


def test_tfds_with_mapped_fields(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with quiet():
    TinyColours(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  source = open_source("tfds:tiny_colours/train", ("question=query", "answers=answer.text"))
  assert sorted(example["question"] for example in source) == ["é0", "é1"]
  assert source[0]["answers"] == ["red", "blue"]
  assert isinstance(source[0]["number"], int)
  with pytest.raises(UserError, match="none of the forms.*config.data.fields"):
    open_source("tfds:tiny_colours/train")
  with pytest.raises(
    UserError, match="tensorflow-datasets cannot give 'tiny_colours', split 'dev'"
  ):
    open_source("tfds:tiny_colours/dev")


@pytest.mark.parametrize("spec", ["tfds:", "tfds:name", "tfds:/train"])
def test_malformed_tfds_name(spec):
  with pytest.raises(UserError, match="not of the form tfds:NAME/SPLIT"):
    open_source(spec)


def test_unknown_tfds_name(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match="cannot give 'no_such_set'") as raised:
    open_source("tfds:no_such_set/train")
  assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
