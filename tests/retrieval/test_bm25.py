"""BM25 against the formula, against bm25s' own index, and against its figures on real questions."""

import bm25s
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.retrieval_recall import gold_recall
from frozen_jax.retrieval import bm25
from frozen_jax.retrieval.bm25 import build_bm25, open_bm25
from frozen_jax.retrieval.corpus import open_corpus
from tests.retrieval import open_qa

TEXTS = [
  "the quick brown fox jumps over the lazy dog",
  "a fox and a fox and a fox",
  "lazy dogs sleep all day, lazy lazy dogs",
  "the",
  "quick quick brown",
  "Fox News reports on the lazy dog",
]


@pytest.fixture
def built(make_corpus, tmp_path):
  return build_bm25(tmp_path / "index", make_corpus(TEXTS), progress=False)


def test_scores_are_lucenes_formula(built):
  found = built.search(["Lazy fox!"], 4)
  # Words that count: 7, 3, 8, 0, 3, 5. "lazy" is in 3 passages, and so is "fox".
  rare, mean = np.log(1 + (6 - 3 + 0.5) / (3 + 0.5)), (7 + 3 + 8 + 0 + 3 + 5) / 6

  def score(count, length):
    return rare * count / (count + 1.5 * (0.25 + 0.75 * length / mean))

  expected = {0: 2 * score(1, 7), 5: 2 * score(1, 5), 1: score(3, 3), 2: score(3, 8)}
  order = sorted(expected, key=lambda index: -expected[index])
  assert found.ids.tolist() == [order]
  np.testing.assert_allclose(found.scores[0], [expected[index] for index in order], rtol=1e-6)


@pytest.mark.parametrize("chunk", [2, 20_000])
def test_the_index_is_that_of_bm25s(make_corpus, tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(bm25, "_CHUNK", chunk)
  build_bm25(tmp_path / "index", make_corpus(TEXTS), progress=False)
  theirs = bm25s.BM25(method="lucene")
  theirs.index(bm25s.tokenize(TEXTS, stopwords="en", show_progress=False), show_progress=False)
  ours = bm25s.BM25.load(tmp_path / "index")
  for name in ("indices", "indptr"):
    np.testing.assert_array_equal(ours.scores[name], theirs.scores[name])
  np.testing.assert_allclose(ours.scores["data"], theirs.scores["data"], rtol=1e-6)
  own = {word: index for word, index in theirs.vocab_dict.items() if word}
  assert ours.vocab_dict == own
  assert {path.name for path in (tmp_path / "index").iterdir()} == {
    *(f"{name}.csc.index.npy" for name in ("data", "indices", "indptr")),
    *("vocab.index.json", "params.index.json", "frozen_jax.json"),
  }


@pytest.mark.parametrize(
  "texts, questions",
  [
    (
      ["東京は日本の首都です。", "京都には古い寺がたくさんあります。", "北海道は雪で有名です。"],
      ["日本の首都は？", "京都の寺", "北海道は何で有名ですか？"],
    ),
    (["北京是中国的首都", "上海有很多高楼", "长城很长"], ["中国首都是哪里", "高楼", "长城有多长"]),
    (
      ["กรุงเทพมหานครเป็นเมืองหลวง", "ภูเก็ตเป็นเกาะ", "เชียงใหม่อยู่ทางเหนือ"],
      ["เมืองหลวงคืออะไร", "เกาะไหน", "ทางเหนือ"],
    ),
    (
      ["दिल्ली भारत की राजधानी है", "गंगा एक नदी है", "हिमालय पहाड़ है"],
      ["राजधानी", "कौन सी नदी", "पहाड़"],
    ),
    (["café de\u0301ja\u0300", "ＡＢＣ社", "plain"], ["déjà", "abc", "plain"]),
  ],
)
def test_scripts_with_and_without_spaces(make_corpus, tmp_path, texts, questions):
  found = build_bm25(tmp_path / "index", make_corpus(texts), progress=False).search(questions, 3)
  assert found.ids[:, 0].tolist() == [0, 1, 2] and (found.scores[:, 0] > 0).all()


def test_equal_scores_go_by_position(built):
  found = built.search(["nothing of this", "", "the"], 6)
  assert found.ids.tolist() == [list(range(6))] * 3 and not found.scores.any()
  assert found.ids.dtype == np.int64 and found.scores.dtype == np.float32
  assert built.search([], 2).ids.shape == (0, 2)


def test_an_index_is_opened_again_and_refused_for_another_corpus(built, make_corpus, tmp_path):
  again = open_bm25(tmp_path / "index", make_corpus(TEXTS))
  for ours, before in zip(again.search(["lazy"], 6), built.search(["lazy"], 6), strict=True):
    np.testing.assert_array_equal(ours, before)
  assert isinstance(again._index.scores["data"], np.memmap)
  other = make_corpus(TEXTS[::-1], "other.jsonl")
  with pytest.raises(UserError, match="of another corpus"):
    open_bm25(tmp_path / "index", other)
  with pytest.raises(UserError, match="exists"):
    build_bm25(tmp_path / "index", other)


def test_what_cannot_be(built, make_corpus, tmp_path):
  for k in (0, 7):
    with pytest.raises(UserError, match="ask for 1 to 6"):
      built.search(["fox"], k)
  corpus = make_corpus(["the", "a"], "empty.jsonl")
  with pytest.raises(UserError, match="no passage of the corpus has a word"):
    build_bm25(tmp_path / "none", corpus, progress=False)
  assert not (tmp_path / "none").exists()
  with pytest.raises(UserError, match="no whole index"):
    open_bm25(tmp_path / "none", corpus)
  data = tmp_path / "index" / "data.csc.index.npy"
  data.write_bytes(data.read_bytes()[:-8])
  with pytest.raises(UserError, match="no whole index"):
    open_bm25(tmp_path / "index", make_corpus(TEXTS))


@open_qa.needed
def test_recall_on_natural_questions(tmp_path):
  corpus = open_corpus(open_qa.FOLDER / "corpus.jsonl.gz", progress=False)
  rows = open_qa.questions("nq_test")
  index = build_bm25(tmp_path / "index", corpus, progress=False)
  found = index.search([row["question"] for row in rows], 100)
  gold = [[corpus.position(id) for id in row["positive_ids"]] for row in rows]
  recall = gold_recall(found.ids, gold, open_qa.RANKS)
  assert [round(value, 1) for value in recall.values()] == [62.6, 83.5, 91.4, 95.6]
