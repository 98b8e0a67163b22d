"""Corpora: every form gives the same passages, by position and by id, and mistakes are named."""

import gzip
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
  for name in ("c.jsonl", "t.tsv"):
    with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
      file.write((tmp_path / name).read_bytes())
  corpora_ = [opened(tmp_path / name) for name in ("c.jsonl", "t.tsv", "c.jsonl.gz", "t.tsv.gz")]
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
    ("t.tsv", "1\tx\ty\n", "line 1: the header of a table must be id"),
    ("t.tsv", TABLE + "3\tx\n", "line 4: not id, text and title"),
    ("t.tsv", TABLE + '3\t"open\tx\n', "line 4: not id, text and title"),
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
