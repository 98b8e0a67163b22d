"""Sources: each kind opens, and each mistake of a user names its place."""

import csv
import gzip
import io
import json
import sys

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
    UserError, match=r"line 1: no field 'answer\.texts'; did you mean answer\?; there are: answer"
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
    ([TEXT, '{"text": "\\ud83d!"}'], r"line 2: \\ud83d is half of a surrogate pair"),
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
  with pytest.raises(UserError, match=r"line 2: not UTF-8 text \(byte 0xff\)"):
    open_source(str(tmp_path / "rows.jsonl"))


ROWS = [{"question": "What\u2028now?", "answers": "a\x0cb"}, {"question": "And?", "answers": "ü"}]


def saved(rows):
  """The same rows as people save them: file name -> bytes."""
  table = io.StringIO(newline="")
  out = csv.DictWriter(table, list(rows[0]), lineterminator="\r\n")
  out.writeheader()
  out.writerows(rows)
  lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
  files = {
    "lines.jsonl": lines.encode(),
    "lines.json": lines.encode(),
    "array.json": json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "short.json": f" \n{json.dumps(rows)}\n".encode(),
    "array.jsonl": json.dumps(rows).encode(),
    "table.csv": table.getvalue().encode(),
    "table.tsv": table.getvalue().replace(",", "\t").encode(),
  }
  files |= {f"mark_{name}": b"\xef\xbb\xbf" + data for name, data in files.items()}
  return files | {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


UPPER = ("TABLE.CSV", "TABLE.TSV", "LINES.JSONL.GZ", "ARRAY.JSON", "TABLE.CSV.GZ", "LINES.JSONL")


@pytest.mark.parametrize("name", [*saved(ROWS), *UPPER])
def test_rows_however_they_were_saved(tmp_path, name):
  (tmp_path / name).write_bytes(saved(ROWS)[name.lower() if name in UPPER else name])
  want = [("What\u2028now?", ["a\x0cb"]), ("And?", ["ü"])]
  for rows in (open_source(str(tmp_path / name)), open_questions(str(tmp_path / name))):
    assert [(row["question"], row["answers"]) for row in rows] == want


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("a.json", b'[{"text": "a"},\n{"text": }]', "line 2: malformed JSON"),
    ("a.json", b'[{"text": "a"},\n\n3]', r"row 2 \(line 3\): a JSON int, not an object"),
    ("a.json", b'[{"text": "a"}\n', "line 2: malformed JSON"),
    ("a.json", b'[{"text": "a"}] x', "malformed JSON .Extra data"),
    ("a.json", b'[{"text": "a"},\n{"text": "caf\xe9"}]', r"line 2: not UTF-8 text \(byte 0xe9\)"),
    ("a.json", b'[{"text": "a"},\n{"text": "\\udc00"}]', r"row 2 \(line 2\): \\udc00 is half"),
    ("a.json", b"[]", "holds no examples"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xed\xa0\xbd"}', "line 2: not UTF-8"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "line 1: UTF-16 text"),
    ("a.csv", "text\na".encode("utf-16"), "line 1: UTF-16 text"),
    ("a.csv", b"text\na\ncaf\xe9", r"line 3: not UTF-8 text"),
    ("a.csv", b"text,id\na,1\nb,2,3\n", "line 3: 3 fields under a header of 2"),
    ("a.csv", b'text\n"a\nb"\n"open', "line 4: not a row of fields"),
    ("a.csv", b"text,text\na,b\n", "line 1: a table's header must name each column, once"),
    ("a.csv", b"text\n", "holds no examples"),
    ("a.csv", b"", "holds no examples"),
  ],
)
def test_mistakes_in_arrays_tables_and_encodings(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=message):
    open_source(str(tmp_path / name))


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


def test_rows_that_two_sources_share(tmp_path):
  one, other = write(tmp_path / "a.jsonl", [QUESTION]), write(tmp_path / "b.jsonl", [TEXT])
  copy = write(tmp_path / "copy.jsonl.gz", [QUESTION])
  train = open_source(f"{one},{other}")
  assert open_source(copy).shared_with(train) == [copy]
  assert open_source(other).shared_with(open_source(one)) == []


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


def test_questions_as_people_type_and_save_them(tmp_path, monkeypatch):
  mark = b"\xef\xbb\xbf"
  cases = {
    b"What is this?\r\nAnd that?\r\n": ["What is this?", "And that?"],
    mark + b'{"question": "What is this?"}\r\n\r\n': ["What is this?"],
    "What\u2028is\x85it?\nNext\x0c one?\rsame line".encode(): [
      "What\u2028is\x85it?",
      "Next\x0c one?\rsame line",
    ],
    b'[\n {"question": "a?"},\n {"question": "b?"}\n]\n': ["a?", "b?"],
    b"[1] is what?\n[2] {is} what?": ["[1] is what?", "[2] {is} what?"],
    mark + b"one?\n" + mark + b"two?": ["one?", "two?"],
  }
  bad = {
    b"one?\ncaf\xe9?\n": r"line 2: not UTF-8 text \(byte 0xe9\)",
    b'{"question": "a \\ud83d b"}': r"line 1: \\ud83d is half of a surrogate pair",
    "one?".encode("utf-16"): "line 1: UTF-16 text",
  }

  def typed(data):  # a terminal whose encoding is another one
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
    return open_questions("-")

  def in_a_file(data):
    (tmp_path / "q.txt").write_bytes(data)
    return open_questions(str(tmp_path / "q.txt"))

  for read in (typed, in_a_file):
    for data, want in cases.items():
      assert [row["question"] for row in read(data)] == want
    for data, message in bad.items():
      with pytest.raises(UserError, match=message):
        read(data)


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


def test_data_sets_of_the_package_datasets(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
  (tmp_path / "facts").mkdir()
  rows = [{"question": f"{n}?", "answers": {"text": ["x"], "answer_start": [1]}} for n in range(3)]
  write(tmp_path / "facts" / "train.jsonl", rows)
  spec = f"hf:{tmp_path}/facts/train"
  source = open_source(spec)
  assert [row["answers"] for row in source] == [["x"]] * 3
  assert source.digest == open_source(spec).digest
  with pytest.raises(UserError, match="datasets cannot give .*facts', split 'dev'"):
    open_source(f"hf:{tmp_path}/facts/dev")
  with pytest.raises(UserError, match="not of the form hf:NAME"):
    open_source("hf:squad")
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(UserError, match="needs the package datasets"):
    open_source(spec)


@pytest.mark.parametrize("row", [QUESTION, {"input": "in", "target": "out"}, {"text": "a text"}])
def test_an_id_is_a_text_or_a_number(tmp_path, row):
  rows = [row | {"id": value} for value in (None, 7, "seven")]
  file = write(tmp_path / "ids.jsonl", rows)
  assert [one["id"] for one in open_source(str(file))] == ["0", 7, "seven"]
  if "text" not in row:
    assert [one["id"] for one in open_questions(str(file))] == ["0", 7, "seven"]
  for value in ([1], {"a": 1}, True):
    file = write(tmp_path / "bad.jsonl", [row, row | {"id": value}])
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: id is .*, where a text or a number"):
      list(open_source(str(file)))
    with pytest.raises(UserError, match="bad.jsonl, line 2: id is"):
      list(open_questions(str(file)))
