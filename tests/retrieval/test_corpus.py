"""Corpora: every form gives the same passages, by position and by id, and mistakes are named."""

import csv
import gzip
import io
import json

import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval import corpus as corpora
from frozen_jax.retrieval.corpus import Passage, open_corpus, write_corpus

PASSAGES = [
  Passage("1", "Aaron", 'Aaron said "no".\tThen he left.'),
  Passage("b-2", "", "Ein Satz über Köln.\nZwei Zeilen."),
  Passage("3", "Ti\ttle", "x"),
]
# As DPR's psgs_w100.tsv: quoted where need be, inner quotes doubled.
TABLE = 'id\ttext\ttitle\n1\t"Aaron said ""no""."\t"Aaron, prophet"\n2\tplain text\tTwo\n'


def opened(path):
  return open_corpus(path, progress=False)


def test_passages_by_position_and_id(tmp_path):
  write_corpus(tmp_path / "c.jsonl", PASSAGES)
  corpus = opened(tmp_path / "c.jsonl")
  assert len(corpus) == 3 and list(corpus) == PASSAGES
  assert [corpus.position(passage.id) for passage in PASSAGES] == [0, 1, 2]
  with pytest.raises(UserError, match="no passage of the id 'zz'"):
    corpus.position("zz")
  with pytest.raises(IndexError):
    corpus[3]


def test_every_form_of_the_same_passages_has_one_fingerprint(tmp_path):
  rows = [Passage("1", "Aaron, prophet", 'Aaron said "no".'), Passage("2", "Two", "plain text")]
  write_corpus(tmp_path / "c.jsonl", rows)
  (tmp_path / "t.tsv").write_text(TABLE)
  (tmp_path / "U.TSV").write_text(TABLE)
  for name in ("c.jsonl", "t.tsv"):
    for packed in (f"{name}.gz", f"{name}.gz".upper()):
      with gzip.open(tmp_path / packed, "wb") as file:
        file.write((tmp_path / name).read_bytes())
  names = ("c.jsonl", "t.tsv", "c.jsonl.gz", "t.tsv.gz", "U.TSV", "C.JSONL.GZ", "T.TSV.GZ")
  corpora_ = [opened(tmp_path / name) for name in names]
  assert all(list(corpus) == rows for corpus in corpora_)
  assert len({corpus.fingerprint for corpus in corpora_}) == 1
  write_corpus(tmp_path / "other.jsonl", rows[::-1])
  assert opened(tmp_path / "other.jsonl").fingerprint != corpora_[0].fingerprint


def test_blank_lines_line_ends_and_a_missing_last_break(tmp_path):
  rows = [json.dumps(passage._asdict()) for passage in PASSAGES]
  (tmp_path / "c.jsonl").write_bytes("\r\n\n  \n".join(rows).encode())
  assert list(opened(tmp_path / "c.jsonl")) == PASSAGES
  (tmp_path / "t.tsv").write_bytes(TABLE.replace("\n", "\r\n").encode())
  assert opened(tmp_path / "t.tsv")[1] == Passage("2", "Two", "plain text")


def test_arrays_tables_marks_and_long_fields(tmp_path):
  """However a corpus was saved: the same passages."""
  long = "word " * 60_000 + "end"  # longer than the csv module takes by itself
  rows = [Passage("1", "Aaron", f"a\u2028b\x0cc {long}"), Passage("2", "", 'said "no",\nthen')]
  written = [row._asdict() for row in rows]
  table = [["text", "id", "title"]] + [[row.text, row.id, row.title] for row in rows]
  files = {
    "c.json": json.dumps(written, indent=2).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in written),
    "mark.json": b"\xef\xbb\xbf" + json.dumps(written, ensure_ascii=False).encode(),
  }
  for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(table)
    files[name] = b"\xef\xbb\xbf" + out.getvalue().encode()
  files |= {f"{name}.gz": gzip.compress(data) for name, data in files.items()}
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
    corpus = opened(tmp_path / name)
    assert list(corpus) == rows and corpus.position("2") == 1, name


@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "t.tsv", "t.csv", "c.jsonl.gz"])
def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path, name):
  rows = {"c": b'{"id": "a", "text": "x"}\n', "t": b"id\ttext\n"}[name[0]]
  bad = {"c": b'{"id": "b", "text": "caf\xe9"}\n', "t": b"b\tcaf\xe9\n"}[name[0]]
  data = b"[" + rows.strip() + b",\n" + bad + b"]" if name == "c.json" else rows + bad
  data = data.replace(b"\t", b",") if name == "t.csv" else data
  (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  with pytest.raises(UserError, match=r"line 2: not UTF-8 text \(byte 0xe9\)"):
    opened(tmp_path / name)
  (tmp_path / name).write_bytes("id,text".encode("utf-16"))
  with pytest.raises(UserError, match="UTF-16" if not name.endswith(".gz") else "damaged"):
    opened(tmp_path / name)


def test_a_file_is_read_through_once_and_anew_when_it_has_changed(tmp_path, monkeypatch):
  path, scans = tmp_path / "c.jsonl", []
  scan = corpora._write_index
  monkeypatch.setattr(corpora, "_write_index", lambda *given: (scans.append(1), scan(*given)))
  write_corpus(path, PASSAGES)
  assert opened(path).fingerprint == opened(path).fingerprint and len(scans) == 1
  write_corpus(path, PASSAGES[:2])
  assert len(opened(path)) == 2 and len(scans) == 2


def test_numbers_as_ids_become_strings(tmp_path):
  (tmp_path / "c.jsonl").write_text('{"id": 7, "text": "x"}')
  assert opened(tmp_path / "c.jsonl")[0] == Passage("7", "", "x")


def test_ids_with_equal_hashes_are_told_apart(tmp_path, monkeypatch):
  monkeypatch.setattr(corpora, "_hash", lambda id: 5)
  write_corpus(tmp_path / "c.jsonl", PASSAGES)
  corpus = opened(tmp_path / "c.jsonl")
  assert [corpus.position(passage.id) for passage in PASSAGES] == [0, 1, 2]


GOOD = '{"id": "a", "title": "t", "text": "x"}\n'


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("c.jsonl", "", "holds no passages"),
    ("c.jsonl", "\n\n", "holds no passages"),
    ("t.tsv", "id\ttext\ttitle\n", "holds no passages"),
    ("c.jsonl", GOOD + "\n" + GOOD, "line 3: line 1 has the id 'a' too"),
    ("t.tsv", TABLE + "1\tx\ty\n", "line 4: line 2 has the id '1' too"),
    ("c.jsonl", GOOD + "{", "line 2: malformed JSON"),
    ("c.jsonl", GOOD + "[1]", "line 2: a JSON list"),
    ("c.jsonl", GOOD + '{"id": "b", "title": "t"}', 'line 2: a passage is {"id", "title", "text"}'),
    ("c.jsonl", GOOD + '{"id": true, "text": "t"}', "line 2: a passage is"),
    ("c.jsonl", GOOD + '{"id": "b", "text": " "}', "line 2: a passage whose text is empty"),
    ("t.tsv", "1\tx\ty\n", "line 1: the header of a table must name id"),
    ("t.tsv", TABLE + "3\tx\n", "line 4: 2 fields under a header of 3"),
    ("t.tsv", TABLE + '3\t"open\tx\n', "line 4: not a row of fields, quoted as in CSV"),
    ("c.jsonl", GOOD + '{"id": "b", "text": "\\ud83d"}', r"line 2: \\ud83d is half of a surrogate"),
    ("c.json", f"[{GOOD},\n" + '{"id": "b"}]', r"row 2 \(line 3\): a passage is"),
    ("c.json", f"[{GOOD}", "line 2: malformed JSON"),
    ("c.json", f"[{GOOD},{GOOD}]", "row 2: row 1 has the id 'a' too"),
  ],
)
def test_what_is_wrong_is_named_with_its_line_and_nothing_is_kept(
  tmp_path, cache, name, text, message
):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    opened(tmp_path / name)
  assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_missing_and_damaged_files(tmp_path):
  with pytest.raises(UserError, match="no file"):
    opened(tmp_path / "none.jsonl")
  packed = gzip.compress(GOOD.encode() * 100)
  (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-9])
  with pytest.raises(UserError, match="damaged or truncated"):
    opened(tmp_path / "cut.jsonl.gz")
