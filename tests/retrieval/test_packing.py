"""Packing: greedy, exact to the token, whole passages but with `overflow` truncate; its errors."""

import numpy as np
import pytest
import tokenizers
import transformers

from frozen_jax.core.errors import UserError
from frozen_jax.retrieval.packing import Packer, TokenBudget
from frozen_jax.retrieval.settings import PackingSettings, ReaderTemplate
from frozen_jax.text.templates import prompt_ids

QUESTION = "who is it"
PLAIN = ReaderTemplate("{passages} Q: {question} A:", separator=" | ")


@pytest.fixture(scope="module")
def tokenizer():
  """Each word is a token, but a run of `|` and the word after it merge into one."""
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
  split = tokenizers.Regex(r"(\| )?\S+")
  model.pre_tokenizer = tokenizers.pre_tokenizers.Split(split, "removed", invert=True)
  return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def text(size, word="x"):
  return " ".join([word] * size)


def packer(tokenizer, total=40, num_virtual_tokens=0, **settings):
  settings = PackingSettings(**{"template": PLAIN, "overflow": "error"} | settings)
  return Packer(tokenizer, settings, TokenBudget(total, 5, num_virtual_tokens))


def test_passages_are_added_in_descending_score_until_the_budget_is_full(tokenizer):
  passages = [("", text(size)) for size in (10, 8, 20, 4)]
  packed = packer(tokenizer, num_virtual_tokens=3).pack(QUESTION, passages, [0.1, 3.0, 2.0, -1.0])
  # 40 - 5 - 3 = 32 for the text, 5 of them question and template: 8, then no 20, then 10 and 4.
  assert packed.passages == (1, 0, 3) and not packed.truncated and packed.num_too_long == 0
  assert packed.prompt == PLAIN.fill(QUESTION, [text(8), text(10), text(4)])
  assert packed.tokens == len(prompt_ids(tokenizer, packed.prompt)) == 27


def test_the_budget_is_filled_to_the_last_token(tokenizer):
  """The separator merges with the word after it: a sum over the parts would be one too many."""
  fits = packer(tokenizer, 5 + 5 + 10 + 20)
  assert fits.pack(QUESTION, [("", text(10)), ("", text(20))]).passages == (0, 1)
  assert fits.pack(QUESTION, [("", text(10)), ("", text(21))]).passages == (0,)
  assert packer(tokenizer, 41).pack(QUESTION, [("", text(10)), ("", text(21))]).passages == (0, 1)


def test_random_passages_never_exceed_the_budget_and_no_other_one_would_have_fitted(tokenizer):
  draw = np.random.default_rng(0)
  for _ in range(30):
    passages = [("", text(int(size))) for size in draw.integers(1, 20, 12)]
    scores = draw.normal(size=12)
    pack = packer(tokenizer, int(draw.integers(30, 90)))
    packed = pack.pack(QUESTION, passages, scores)
    max_tokens = pack.budget.max_prompt_tokens
    assert packed.tokens == len(prompt_ids(tokenizer, packed.prompt)) <= max_tokens
    assert [scores[i] for i in packed.passages] == sorted(
      (scores[i] for i in packed.passages), reverse=True
    )
    texts = [passages[index][1] for index in packed.passages]
    for other in set(range(12)) - set(packed.passages):
      longer = PLAIN.fill(QUESTION, [*texts, passages[other][1]])
      assert len(prompt_ids(tokenizer, longer)) > max_tokens


def test_the_best_passage_may_be_last(tokenizer):
  passages = [("", text(3, word)) for word in "abc"]
  best_first = packer(tokenizer).pack(QUESTION, passages, [1.0, 3.0, 2.0])
  best_last = packer(tokenizer, passage_order="best_last").pack(QUESTION, passages, [1.0, 3.0, 2.0])
  assert best_first.passages == (1, 2, 0) and best_last.passages == (0, 2, 1)
  assert best_last.prompt == PLAIN.fill(QUESTION, [text(3, word) for word in "acb"])


def test_equal_scores_keep_their_order_and_a_number_of_passages_can_be_set(tokenizer):
  passages = [("", text(2, word)) for word in "abcd"]
  packed = packer(tokenizer, max_passages=2).pack(QUESTION, passages, [1.0, 2.0, 2.0, 2.0])
  assert packed.passages == (1, 2)
  assert packer(tokenizer, max_passages=3).pack(QUESTION, passages).passages == (0, 1, 2)


def test_titles_precede_their_passages(tokenizer):
  packed = packer(tokenizer).pack(QUESTION, [("T", text(2)), ("", text(2))])
  assert packed.prompt == f"T: {text(2)} | {text(2)} Q: {QUESTION} A:"


def test_no_passages_and_braces_within_them(tokenizer):
  assert packer(tokenizer).pack(QUESTION, []).prompt == f" Q: {QUESTION} A:"
  assert "{x}" in packer(tokenizer).pack("{y}", [("{t}", "{x}")]).prompt


def test_a_passage_is_truncated_only_where_overflow_is_cut(tokenizer):
  passages = [("", text(8)), ("", "a b c d e f g h i j"), ("", text(1))]
  packed = packer(tokenizer, 20 + 4, overflow="truncate").pack(QUESTION, passages)
  assert packed.truncated and packed.passages == (0, 1)
  assert packed.prompt == PLAIN.fill(QUESTION, [text(8), "a b c d e f"])
  assert packed.tokens == 19
  whole = packer(tokenizer, 20 + 4).pack(QUESTION, passages)
  assert whole.passages == (0, 2) and not whole.truncated
  full = packer(tokenizer, 18, overflow="truncate").pack(QUESTION, passages)
  assert full.passages == (0,) and not full.truncated


def test_a_passage_longer_than_the_budget(tokenizer):
  passages = [("", text(50)), ("", text(3))]
  with pytest.raises(UserError, match="a passage of 50 tokens .* longer than the 30"):
    packer(tokenizer).pack(QUESTION, passages)
  packed = packer(tokenizer, overflow="skip").pack(QUESTION, passages)
  assert packed.passages == (1,) and packed.num_too_long == 1
  packed = packer(tokenizer, overflow="truncate").pack(QUESTION, passages)
  assert packed.passages == (0,) and packed.truncated and packed.tokens == 35


def test_a_question_longer_than_the_budget(tokenizer):
  with pytest.raises(UserError, match="takes 42 tokens with its template and the budget leaves 35"):
    packer(tokenizer).pack(text(40), [])


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: TokenBudget(10, 5, 5), "holds no text"),
    (lambda: Packer(None, PackingSettings(), TokenBudget(10, 5)), "no tokenizer"),
  ],
)
def test_errors(make, message):
  with pytest.raises(UserError, match=message):
    make()
