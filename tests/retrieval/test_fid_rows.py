"""FiD rows come back as they were written; DPR's own form is understood; mistakes are named."""

import gzip
import json

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.fid_rows import read_rows, write_rows

ROWS = [
  {
    "question": "who?",
    "answers": ["Zoë"],
    "ctxs": [{"id": "7", "title": "T", "text": "Zoë did", "score": 1.5, "hasanswer": True}],
    "id": "q1",
  },
  {"question": "when?", "answers": [], "ctxs": []},
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_come_back(tmp_path, name):
  write_rows(tmp_path / name, ROWS)
  assert list(read_rows(tmp_path / name)) == ROWS
  first = (tmp_path / name).read_bytes()
  write_rows(tmp_path / name, ROWS)
  assert (tmp_path / name).read_bytes() == first


def test_dprs_form_is_understood(tmp_path):
  row = {"question": "q", "answers": ["a"]}
  row["ctxs"] = [{"id": 3, "title": None, "text": "x", "score": "81.25", "has_answer": False}]
  for name, opener in (("d.json", open), ("d.json.gz", gzip.open)):
    with opener(tmp_path / name, "wt") as file:
      json.dump([row], file, indent=1)
    (read,) = read_rows(tmp_path / name)
    assert read["ctxs"] == [
      {"id": "3", "title": "", "text": "x", "score": 81.25, "hasanswer": False}
    ]


def test_a_file_half_written_is_not_there(tmp_path):
  def rows():
    yield ROWS[0]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_rows(tmp_path / "rows.jsonl.gz", rows())
  assert list(tmp_path.iterdir()) == []


GOOD = '{"question": "q", "answers": ["a"], "ctxs": []}\n'


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "holds no questions"),
    (GOOD + "\n{", "line 3: malformed JSON"),
    ('{"question": " ", "answers": [], "ctxs": []}', 'line 1: "question"'),
    ('{"question": "q", "answers": null, "ctxs": []}', "line 1: answers is null"),
    ('{"question": "\\ud83d", "answers": [], "ctxs": []}', "line 1: .* half of a surrogate"),
    ('{"question": "q", "answers": [], "ctxs": {}}', 'line 1: "ctxs"'),
    ('{"question": "q", "answers": [], "ctxs": [{"title": "t"}]}', "line 1, passage 1"),
    ('{"question": "q", "answers": [], "ctxs": [{"text": "t", "score": "x"}]}', "\"score\" is 'x'"),
  ],
)
def test_a_malformed_row_is_named(tmp_path, text, message):
  (tmp_path / "rows.jsonl").write_text(text)
  with pytest.raises(UserError, match=message):
    list(read_rows(tmp_path / "rows.jsonl"))


def test_a_list_that_is_none(tmp_path):
  for text, message in (
    ("[" + GOOD + GOOD, "line 2: malformed"),
    ("[1]", "row 1 .* not an object"),
  ):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=message):
      list(read_rows(tmp_path / "rows.json"))
