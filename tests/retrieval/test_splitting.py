"""Documents become disjoint passages of a fixed number of words; no word is lost or doubled."""

import pytest

from frozen_jax.retrieval.corpus import Passage
from frozen_jax.retrieval.splitting import split_documents


def test_every_word_is_in_one_passage():
  words = [f"w{index}" for index in range(250)]
  document = Passage("d", "Title", " ".join(words))
  passages = list(split_documents([document]))
  assert [len(passage.text.split()) for passage in passages] == [100, 100, 50]
  assert " ".join(passage.text for passage in passages).split() == words
  assert [passage.id for passage in passages] == ["d-0", "d-1", "d-2"]
  assert {passage.title for passage in passages} == {"Title"}
  assert passages == list(split_documents([document]))


def test_documents_of_scripts_without_spaces_are_split():
  text = "東京は日本の首都です。" * 50
  passages = list(split_documents([Passage("d", "", text)], 100))
  assert [len(passage.text) for passage in passages[:2]] == [220, 220]
  assert "".join(passage.text for passage in passages) == text


def test_line_breaks_stay_and_a_document_without_words_gives_none():
  documents = [Passage("a", "", " one\ntwo  three "), Passage("b", "", " \n")]
  assert list(split_documents(documents, 2)) == [
    Passage("a-0", "", "one\ntwo"),
    Passage("a-1", "", "three"),
  ]
  with pytest.raises(ValueError, match="0 words"):
    list(split_documents(documents, 0))
