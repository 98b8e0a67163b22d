"""What a re-ranker is trained to tell apart: which passages are taken as negatives."""

import dataclasses

import pytest

from frozen_jax.config.section import resolve
from frozen_jax.core.errors import UserError
from frozen_jax.pipelines.retrieve_read.re_rank import training_groups
from frozen_jax.pipelines.retrieve_read.settings import ReRankerSettings
from frozen_jax.retrieval.corpus import Passage, open_corpus, write_corpus

SETTINGS = ReRankerSettings(
  positives="gold", negatives_from="positives", mining_depth=10, drop_answers=True, in_batch=0
)
PASSAGES = [
  *(Passage(f"plain{n}", "", f"-- fact {n} -- of the plain source") for n in range(4)),
  *(Passage(f"styled{n}", f"Page {n}", f"Fact {n} of a source of another style") for n in range(4)),
]


@pytest.fixture
def corpus(tmp_path):
  write_corpus(tmp_path / "corpus.jsonl", PASSAGES)
  return open_corpus(tmp_path / "corpus.jsonl", progress=False)


def row(number, found=PASSAGES, source="plain"):
  """A question that a source's passage of that number answers; a retriever found all of `found`."""
  contexts = [passage._asdict() for passage in found]
  asked = {"id": str(number), "question": f"what is {number}", "answers": [f"fact no {number}"]}
  return asked | {"dataset": source, "positive_ids": [f"{source}{number}"], "ctxs": contexts}


def test_a_negative_answers_another_question(corpus):
  """Training questions name plain passages alone: the style must not tell them from the others."""
  (train, held_out), left_out = training_groups(([row(0), row(1)], [row(2)]), corpus, SETTINGS)
  assert [group.positives for group in (*train, *held_out)] == [(0,), (1,), (2,)]
  assert [group.negatives for group in (*train, *held_out)] == [(1,), (0,), (0, 1)]
  assert left_out == 0


def test_a_negative_answers_a_question_of_the_same_data_set(corpus):
  rows = [row(0), row(1), row(2, source="styled"), row(3, source="styled")]
  (train, held_out), _ = training_groups((rows, [row(2)]), corpus, SETTINGS)
  assert [group.positives for group in train] == [(0,), (1,), (6,), (7,)]
  assert [group.negatives for group in train] == [(1,), (0,), (7,), (6,)]
  assert held_out[0].negatives == (0, 1, 6, 7)


def test_a_negative_is_any_passage_found(corpus):
  settings = dataclasses.replace(SETTINGS, negatives_from="corpus", mining_depth=5)
  ((group,), _), _ = training_groups(([row(0)], []), corpus, settings)
  assert group.negatives == (1, 2, 3, 4, 5)


def test_questions_that_have_nothing_to_tell_apart_are_left_out_and_counted(corpus):
  rows = [row(0), row(1, PASSAGES[4:])], [row(2, PASSAGES[2:3])]  # 1 finds no plain passage
  (train, held_out), left_out = training_groups(rows, corpus, SETTINGS)
  assert [group.question for group in train] == ["what is 0"]
  assert (held_out, left_out) == ([], 2)
  (train, held_out), left_out = training_groups(
    rows, corpus, dataclasses.replace(SETTINGS, in_batch=1)
  )
  assert (len(train), len(held_out), left_out) == (2, 1, 0)


def test_nothing_to_train_on(corpus):
  alone = [row(1, PASSAGES[4:])], [row(2)]
  with pytest.raises(UserError, match="for none of 1 training questions .* raise reader.depth, or"):
    training_groups(alone, corpus, SETTINGS)
  assert training_groups(([], [row(2)]), corpus, SETTINGS)[0][0] == []


def test_passages_that_hold_an_answer_stand_for_positives(corpus):
  found = row(3) | {"answers": ["fact 3"], "positive_ids": []}
  lost = row(1) | {"answers": ["nowhere"], "positive_ids": []}
  settings = dataclasses.replace(SETTINGS, positives="answers", negatives_from="corpus")
  ((group,), _), left_out = training_groups(([found, lost], []), corpus, settings)
  assert (group.positives, left_out) == ((3,), 1)
  assert group.negatives == (0, 1, 2, 4, 5, 6), "styled3 holds the answer too"


@pytest.mark.parametrize("name", ["negatives_from", "positives", "train"])
def test_a_choice_that_does_not_exist(name):
  with pytest.raises(UserError, match=f"reader.re_ranker.{name} is 'everything'; it is one of"):
    resolve(ReRankerSettings, {name: "everything"}, "reader.re_ranker")
