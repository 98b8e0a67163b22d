"""The rows of a batch as texts: those of questions, of plain text and of a re-ranker."""

import pytest

from frozen_jax.core.types import ROW_INDEX
from frozen_jax.data.batch_texts import batch_texts, group_texts
from frozen_jax.data.batches import training_batches
from frozen_jax.data.pairs import GroupBatches, GroupOptions
from frozen_jax.data.tasks import LanguageModelTask, QuestionTask
from tests.re_ranking import PASSAGES, groups, pair_encoder

QUESTIONS = [
  {"id": f"q{n}", "question": " ".join([str(n)] * words), "answers": [answer, "blue"]}
  for n, words, answer in ((1, 1, "red"), (2, 30, "green"), (3, 3, "green red"), (4, 1, "blue"))
]


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_questions(words, shard):
  """Each row is its own example; one that is too long has been replaced by the next."""
  task = QuestionTask(words, lengths=(8, 16))
  batches, by_id, seen = training_batches(QUESTIONS, task, 4, 0, shard), {}, set()
  for _ in range(3):
    batch = next(batches)
    texts = batch_texts(batch, words, QUESTIONS, task)
    assert len(texts) == 4 // shard[1] == len(batch[ROW_INDEX])
    by_id |= {row["id"]: (row["prompt"], row["answer"]) for row in texts}
    seen |= set(batch[ROW_INDEX].tolist())
  expected = {
    "q1": ("Question: 1 Answer:", "red <end>"),
    "q3": ("Question: 3 3 3 Answer:", "green red <end>"),
    "q4": ("Question: 4 Answer:", "blue <end>"),
  }
  assert by_id == {one: expected[one] for one in by_id}
  assert seen == {int(one[1]) - 1 for one in by_id} and len(by_id) > 1


def test_plain_text(words):
  task, source = LanguageModelTask(words, lengths=(4,)), [{"text": "1 2 3 4 5 6 7"}]
  (first, second) = sorted(
    batch_texts(next(training_batches(source, task, 2)), words, source, task),
    key=lambda row: row["id"],
  )
  assert first == {"id": "window 1", "prompt": "1", "answer": "2 3 4"}
  assert second == {"id": "window 2", "prompt": "5", "answer": "6 7 <end>"}


@pytest.mark.parametrize("units", [1, 2])
def test_questions_with_passages(units):
  chosen, encoder = groups(), pair_encoder()
  batches = GroupBatches(chosen, PASSAGES.__getitem__, encoder, 4, GroupOptions(3), units=units)
  positives = {group.question: [PASSAGES[key] for key in group.positives] for group in chosen}
  rows = group_texts(next(batches), encoder)
  assert len(rows) == 4
  for row in rows:
    pairs = [text.removeprefix("<s> ").split(" </s>")[:2] for text in row["texts"]]
    question, passages = pairs[0][0].strip(), [passage.strip() for _, passage in pairs]
    assert {one.strip() for one, _ in pairs} == {question}
    assert passages[0] in positives[question]
    assert 1 < len(passages) == len(set(passages)) <= 4
    assert set(passages) <= set(PASSAGES)
