"""The index of vectors: a killed build goes on, and another encoder's or corpus' is refused."""

import json

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.dense_index import build_dense, embed_sorted, open_dense

TEXTS = [f"{index} " + "x" * (index * 7 % 11) for index in range(50)]


class Encoder:
  """Gives each text [number, length, 1] and notes what it was asked."""

  def __init__(self, die_after=None):
    self.asked, self.die_after = [], die_after

  def __call__(self, texts):
    if len(self.asked) == self.die_after:
      raise KeyboardInterrupt
    self.asked.append(list(texts))
    return np.float32([[int(text.split()[0]), len(text), 1] for text in texts])


EXPECTED = np.float32([[index, len(text), 1] for index, text in enumerate(TEXTS)])


def build(folder, corpus, embed, encoder="e", **options):
  options = {"batch": 4, "shard_rows": 16, "progress": False} | options
  return build_dense(folder, corpus, embed, encoder, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_the_passages_in_their_order(make_corpus, tmp_path, dtype):
  corpus = make_corpus(TEXTS)
  index = build(tmp_path / "i", corpus, Encoder(), dtype=dtype)
  again = open_dense(tmp_path / "i", "e", corpus)
  assert again == index and (len(index), index.width, index.dtype) == (50, 3, dtype)
  for start, stop in ((0, 50), (3, 9), (14, 35), (48, 50)):
    np.testing.assert_array_equal(index.rows(start, stop).astype(np.float32), EXPECTED[start:stop])
  positions = np.array([[49, 0], [16, 15]])
  np.testing.assert_array_equal(index.gather(positions).astype(np.float32), EXPECTED[positions])
  assert index.max_norm == pytest.approx(np.linalg.norm(EXPECTED, axis=1).max())
  assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
    *(f"{shard:06d}.npy" for shard in range(4)),
    "index.json",
  ]


def test_a_killed_build_goes_on_and_ends_the_same(make_corpus, tmp_path):
  corpus = make_corpus(TEXTS)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / "i", corpus, Encoder(die_after=9))  # in the third shard of four
  with pytest.raises(UserError, match="unfinished"):
    open_dense(tmp_path / "i", "e", corpus)
  rest, whole = Encoder(), Encoder()
  build(tmp_path / "i", corpus, rest)
  assert sum(map(len, rest.asked)) == 50 - 32
  build(tmp_path / "whole", corpus, whole)
  names = {path.name for path in (tmp_path / "whole").iterdir()}
  assert names == {path.name for path in (tmp_path / "i").iterdir()}
  for name in names:
    assert (tmp_path / "i" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  idle = Encoder()
  build(tmp_path / "i", corpus, idle)
  assert idle.asked == []


def test_batches_are_of_similar_length():
  encoder, reported = Encoder(), []
  vectors = embed_sorted(TEXTS, encoder, 8, reported.append)
  np.testing.assert_array_equal(vectors, EXPECTED)
  lengths = [len(text) for batch in encoder.asked for text in batch]
  assert lengths == sorted(lengths, reverse=True) and max(map(len, encoder.asked)) == 8
  assert sum(reported) == 50


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_of_something_else_is_refused(make_corpus, tmp_path, finished):
  corpus, other = make_corpus(TEXTS), make_corpus(TEXTS[::-1], "other.jsonl")
  if finished:
    build(tmp_path / "i", corpus, Encoder())
  else:
    with pytest.raises(KeyboardInterrupt):
      build(tmp_path / "i", corpus, Encoder(die_after=5))
  for message, given in (
    ("of another encoder", {"corpus": corpus, "encoder": "another"}),
    ("of another corpus", {"corpus": other}),
    ("of another dtype", {"corpus": corpus, "dtype": "float16"}),
    ("of another separator", {"corpus": corpus, "separator": "|"}),
  ):
    with pytest.raises(UserError, match=message):
      build(tmp_path / "i", embed=Encoder(), **given)
  if finished:
    with pytest.raises(UserError, match="of another encoder"):
      open_dense(tmp_path / "i", "another", corpus)
    with pytest.raises(UserError, match="of another corpus"):
      open_dense(tmp_path / "i", "e", other)


def test_titles_stand_before_the_text(tmp_path):
  from frozen_jax.retrieval.corpus import Passage, open_corpus, write_corpus

  write_corpus(tmp_path / "c.jsonl", [Passage("a", "1 T", "x"), Passage("b", "", "2 y")])
  encoder = Encoder()
  corpus = open_corpus(tmp_path / "c.jsonl", progress=False)
  build(tmp_path / "i", corpus, encoder, separator=" [SEP] ")
  assert encoder.asked == [["1 T [SEP] x", "2 y"]]


@pytest.mark.parametrize(
  "embed, dtype, message",
  [
    (lambda texts: np.full((len(texts), 3), np.nan), "float32", "not finite"),
    (lambda texts: np.full((len(texts), 3), 1e6), "float16", "too long for float16"),
    (lambda texts: np.zeros((len(texts), len(texts[0]))), "float32", "one of one width"),
    (lambda texts: np.zeros(3), "float32", "one of one width"),
    (Encoder(), "int8", "choose one of float32"),
  ],
)
def test_vectors_that_cannot_be_stored(make_corpus, tmp_path, embed, dtype, message):
  with pytest.raises(UserError, match=message):
    build(tmp_path / "i", make_corpus(TEXTS), embed, dtype=dtype)


def test_damage_is_found_when_it_is_opened(make_corpus, tmp_path):
  corpus = make_corpus(TEXTS)
  build(tmp_path / "i", corpus, Encoder())
  shard, description = tmp_path / "i" / "000002.npy", tmp_path / "i" / "index.json"
  good = shard.read_bytes()
  for bad in (good[:-4], b"", None):
    shard.unlink() if bad is None else shard.write_bytes(bad)
    with pytest.raises(UserError, match="000002.npy is missing or damaged"):
      open_dense(tmp_path / "i", "e", corpus)
  shard.write_bytes(good)
  description_values = json.loads(description.read_text())
  del description_values["width"]
  for bad in (json.dumps(description_values), "{", "[]"):
    description.write_text(bad)
    with pytest.raises(UserError, match="lacks 'width'|is damaged"):
      open_dense(tmp_path / "i", "e", corpus)
  with pytest.raises(UserError, match="no index"):
    open_dense(tmp_path / "none", "e", corpus)
