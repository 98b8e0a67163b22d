"""Words are cut as the script needs it; where there are spaces, they are those of bm25s."""

import re

import pytest

from frozen_jax.retrieval.words import word_spans, words


@pytest.mark.parametrize(
  "text, expected",
  [
    ("the cat's x-ray, 3 is_it 12", ["the", "cat", "ray", "is_it", "12"]),
    ("Größe naïve Москва", ["Größe", "naïve", "Москва"]),
    ("서울은 대한민국의 수도", ["서울은", "대한민국의", "수도"]),
    ("हिन्दी भाषा है", ["हिन्दी", "भाषा", "है"]),
    ("e\u0301te\u0301 \uff21\uff22\uff23", ["été", "ABC"]),
    ("京都の寺", ["京都", "都の", "の寺", "京", "都", "寺"]),
    ("寺。", ["寺"]),
    ("iPhone版の話", ["iPhone", "版の", "の話", "版", "話"]),
    ("カタカナ", ["カタ", "タカ", "カナ"]),
    ("กรุงเทพ", ["กรุ", "รุง", "งเ", "เท", "ทพ"]),
    ("", []),
  ],
)
def test_words_of_each_script(text, expected):
  assert words(text) == expected


def test_ordinary_words_are_those_of_bm25s():
  text = "The Île-de-France (population: 12,997,058) isn't “small”; naïve über-fans_2 say a Б-52."
  assert words(text) == re.findall(r"(?u)\b\w\w+\b", text)


def test_spans_count_words():
  spans = lambda text: [text[start:end] for start, end in word_spans(text)]
  assert spans(" one\ntwo-three  4.") == ["one", "two-three", "4."]
  assert spans("東京は日本の首都です。ok") == ["東京", "は日", "本の", "首都", "です。", "ok"]
  assert spans("ไทย ok") == ["ไท", "ย", "ok"]
