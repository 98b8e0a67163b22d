"""Settings and data of a frozen reader that make no sense are refused."""

import json

import pytest

from frozen_jax import run
from frozen_jax.core.errors import UserError


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"reader.ranking": "best"}, "config.reader.ranking is 'best'; it is one of none, bm25_1"),
    ({"reader.rankings": ("best",)}, "reader.rankings holds 'best'; it is one of none, bm25_1"),
    ({"reader.budgets": (500,)}, "a budget of 500 tokens is more than the 124"),
    ({"reader.retrievers": ("spider",)}, "reader.retrievers holds 'spider'; it is one of bm25"),
    ({"reader.retrievers": ("dense",)}, "ranking bm25 needs bm25 among config.reader.ret"),
    ({"reader.questions": 0}, "reader.questions is 0"),
    ({"reader.max_train_questions": -1}, "reader.max_train_questions is -1"),
    ({"reader.fusion": "luck"}, "reader.fusion is 'luck'; it is one of reciprocal_ranks, weighted"),
    (
      {"reader.fusion": "weighted_sum", "reader.weights": (1.0,)},
      "reader.weights is .* give one to each",
    ),
    ({"stop_after": "never"}, "stop_after is 'never'; it is empty or one of retrieve, re_ranker"),
    ({"reader.re_ranker.positives": "some"}, "reader.re_ranker.positives is 'some'"),
  ],
)
def test_mistakes(make_config, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    run.train(make_config(**changes), tmp_path)


@pytest.mark.parametrize(
  "positives, message",
  [([], "has no passage that answers it"), (["Atlantis-0"], "question Peru: .* no passage of")],
)
def test_questions_without_their_passage(make_config, tmp_path, positives, message):
  row = {"id": "Peru", "question": "What is the capital of Peru?", "answers": ["Lima"]}
  path = tmp_path / "train.jsonl"
  path.write_text((json.dumps(row | {"positive_ids": positives}) + "\n") * 3)
  with pytest.raises(UserError, match=message):
    run.train(make_config(**{"data.train": str(path)}), tmp_path / "run")
