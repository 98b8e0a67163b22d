"""Scores of a tuned model on files: questions, data of many tasks, plain text, held-out data."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.settings import DataSettings
from frozen_jax.evaluation import retention
from frozen_jax.evaluation.answers import grade
from frozen_jax.evaluation.scores import (
  check_test_questions,
  score_answers,
  score_model,
  score_test_answers,
)
from frozen_jax.evaluation.settings import EvaluateSettings
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.models.reading_cost import reading_flops
from frozen_jax.modules.settings import PromptSettings
from tests.evaluation.tiny import CONFIG, tiny_lm, train, tuned, words

SETTINGS = EvaluateSettings(max_new_tokens=3, batch_size=4)


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


@pytest.fixture(scope="module")
def lm():
  return tiny_lm(tokenizer=words())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(folder, lm):
  """Five questions, of which the unmodified LM answers the first two right; eight rows of tasks."""
  asked = [{"id": f"q{n}", "question": f"{n} {n + 1} 7", "answers": ["39"]} for n in range(1, 6)]
  answers = tuned(lm, inputs=DataSettings(template="{question}"), generation=SETTINGS).answer(asked)
  for row, answer in zip(asked[:2], answers, strict=False):
    row["answers"] = ["1 2 3", answer]
  tasks = [
    {"dataset": "yes", "template": "a", "input": f"{n} 3 4", "target": "5", "choices": ["5", "6"]}
    for n in range(1, 4)
  ]
  tasks += [
    {"dataset": "write", "template": "b", "input": f"{n} 8", "target": "9"} for n in range(1, 6)
  ]
  tasks[-1]["input"] = " ".join(["3"] * 60)
  rng = np.random.default_rng(0)
  texts = [{"text": " ".join(map(str, rng.integers(1, 40, 30)))} for _ in range(3)]
  return DataSettings(
    template="{question}",
    lengths=(8, 16),
    test=written(folder / "asked.jsonl", asked),
    train=written(folder / "texts.jsonl", texts),
    held_out=(written(folder / "tasks.jsonl", tasks),),
  )


def test_questions_and_held_out_tasks(lm, data):
  model = tuned(lm)
  scores = score_model(model, data, SETTINGS, prompt_length=0)
  assert scores.metrics["exact_match"] == 40.0 and scores.metrics["examples"] == 5
  assert scores.metrics["exact_match_low"] <= 40 <= scores.metrics["exact_match_high"]
  assert {"f1", "f1_low", "f1_high", "loss", "perplexity", "accuracy"} < scores.metrics.keys()
  assert [row["scores"]["exact_match"] for row in scores.predictions] == [100, 100, 0, 0, 0]
  for row in scores.predictions:
    assert row["scores"] == grade([row["prediction"]], [row["answers"]])
    assert row.keys() == {"id", "input", "prediction", "answers", "scores", "loss", "targets"}
  total = sum(row["loss"] * row["targets"] for row in scores.predictions)
  targets = sum(row["targets"] for row in scores.predictions)
  assert scores.metrics["loss"] == pytest.approx(total / targets, rel=1e-6)
  (tasks,) = data.held_out
  metrics, table = scores.held_out[tasks], scores.by_task[tasks]
  assert table["datasets"].keys() == {"yes", "write"}
  assert (table["rows"], table["skipped"], table["left_out"]) == (7, 1, 0)
  assert (metrics["examples"], metrics["skipped"]) == (7, 1)
  assert metrics["score"] == table["mean"]["score"]
  assert {"loss", "perplexity", "rouge_l", "accuracy"} < metrics.keys()


def test_the_cost_of_a_question_is_that_of_one_of_mean_length(lm, data):
  scores = score_model(tuned(lm), data, SETTINGS, prompt_length=0)
  assert scores.metrics["gflop"] == reading_flops(tuned(lm), 3) / 1e9 > 0
  (tasks,) = scores.held_out
  assert "gflop" not in scores.held_out[tasks]
  of_tasks = dataclasses.replace(data, test=tasks, held_out=())
  assert score_model(tuned(lm), of_tasks, SETTINGS, prompt_length=0).metrics["gflop"] > 0


class Waiting(ZeroShot):
  """The LM, with a loop whose iterations depend on the text."""

  def prefill(self, trainable, frozen, prompts, max_new_tokens, free_slots):
    ends = jax.lax.while_loop(lambda n: n < 1, lambda n: n + 1, prompts["mask"].sum() - 1)
    found, state = super().prefill(trainable, frozen, prompts, max_new_tokens, free_slots)
    return found + 0 * ends, state


def test_a_cost_that_cannot_be_counted_is_left_out(lm, data):
  scores = score_model(tuned(lm, Waiting(CONFIG)), data, SETTINGS, prompt_length=0)
  assert "gflop" not in scores.metrics and scores.metrics["exact_match"] == 40.0


def test_a_question_that_is_too_long_to_be_scored_has_no_loss(lm, folder):
  asked = [{"id": "long", "question": " ".join(["3"] * 9), "answers": ["4"]}]
  asked += [{"id": f"q{n}", "question": "1 " * n, "answers": ["39"] * n} for n in (3, 1, 2)]
  file = written(folder / "long.jsonl", asked)
  inputs = DataSettings(template="{question}", lengths=(8,), test=file)
  scores = score_model(tuned(lm), inputs, SETTINGS, prompt_length=0)
  assert scores.metrics["skipped"] == 1
  assert [row["id"] for row in scores.predictions if "loss" in row] == ["q3", "q1", "q2"]
  for row in scores.predictions[1:]:
    file = written(folder / "alone.jsonl", [one for one in asked if one["id"] == row["id"]])
    alone = score_model(tuned(lm), dataclasses.replace(inputs, test=file), SETTINGS, 0)
    assert alone.metrics["loss"] == pytest.approx(row["loss"], rel=1e-5)


def test_rows_of_tasks_keep_their_scores(lm, data):
  tasks = dataclasses.replace(data, test=data.held_out[0], held_out=())
  scores = score_model(tuned(lm), tasks, SETTINGS, prompt_length=0)
  assert [row["dataset"] for row in scores.predictions] == ["yes"] * 3 + ["write"] * 4
  for row in scores.predictions:
    if row["dataset"] == "yes":
      right = 100.0 * (row["prediction"] == "5")
      assert row["scores"] == {"accuracy": right} and row["prediction"] in row["choices"]
    else:
      assert row["scores"].keys() == {"exact_match", "f1", "rouge_l"}
  accuracy = np.mean([row["scores"]["accuracy"] for row in scores.predictions[:3]])
  assert scores.metrics["accuracy"] == pytest.approx(accuracy)


def test_plain_text_has_no_answers(lm, data):
  texts = dataclasses.replace(data, test=data.train, held_out=())
  scores = score_model(tuned(lm), texts, SETTINGS, prompt_length=0)
  assert scores.metrics.keys() == {"loss", "perplexity", "accuracy"} and not scores.predictions


def test_answers_alone_are_scored_alike(lm, data):
  whole = score_model(tuned(lm), dataclasses.replace(data, held_out=()), SETTINGS, 0)
  alone = score_test_answers(tuned(lm), data, SETTINGS, 0)
  without = [
    {key: value for key, value in row.items() if key not in ("loss", "targets")}
    for row in whole.predictions
  ]
  assert alone.predictions == without
  assert alone.metrics == {name: whole.metrics[name] for name in alone.metrics}
  assert "loss" not in alone.metrics
  fewer = score_test_answers(tuned(lm), data, dataclasses.replace(SETTINGS, max_examples=2), 0)
  assert fewer.metrics["exact_match"] == 100.0 and fewer.metrics["examples"] == 2


def test_a_model_answers_as_the_arguments_say(lm, data):
  """Not by its own inputs and generation."""
  model = tuned(lm, inputs=DataSettings(template="1 {question}"), generation=EvaluateSettings())
  assert score_test_answers(model, data, SETTINGS, 0) == score_test_answers(
    tuned(lm), data, SETTINGS, 0
  )
  other = dataclasses.replace(data, template="1 {question}")
  answered = score_test_answers(tuned(lm), other, SETTINGS, 0)
  assert answered != score_test_answers(tuned(lm), data, SETTINGS, 0)


class Fixed:
  """An inference that answers everything with one text."""

  def answer(self, model, examples):
    return ["39"] * len(examples)


def test_a_model_answers_by_its_inference(lm, data):
  scores = score_test_answers(tuned(lm, inference=Fixed()), data, SETTINGS, 0)
  assert [row["prediction"] for row in scores.predictions] == ["39"] * 5


def test_given_answers_are_scored(lm):
  task = tuned(lm).question_task
  examples = [{"question": "1", "answers": ["2", "3"]}, {"question": "4", "answers": ["5"]}]
  scores = score_answers(task, examples, ["3", "6"])
  assert scores.metrics["exact_match"] == 50.0
  assert [row["scores"] for row in scores.predictions] == [
    {"exact_match": 100.0, "f1": 100.0},
    {"exact_match": 0.0, "f1": 0.0},
  ]


def test_questions_that_do_not_fit_are_refused_beforehand(lm, data):
  check_test_questions(lm, data, SETTINGS, prompt_length=0)
  long = dataclasses.replace(SETTINGS, max_new_tokens=62)
  with pytest.raises(UserError, match="the question with id q1 of .*asked.jsonl has 3 tokens"):
    check_test_questions(lm, data, long, prompt_length=0)
  with pytest.raises(UserError, match="and the 60 of the trained prompt do not fit"):
    check_test_questions(lm, data, SETTINGS, prompt_length=60)


def skills(lm, method, seed):
  return train(tuned(lm, method, method.init(lm, jax.random.key(seed))), seed=seed)


def test_what_is_retained(lm, data):
  settings = dataclasses.replace(SETTINGS, general_text=data.train, skills=("first",))
  retention.check_retention(lm, data, settings, {"first": data, "second": data})
  before = retention.general_text_before(lm, data, settings)
  for method, unchanged in (
    (PromptTuning(CONFIG, PromptSettings(length=2, text="")), True),
    (None, False),
  ):
    method = method or FineTuning(CONFIG)
    first, second = (skills(lm, method, seed) for seed in (1, 2))
    report = retention.forgetting_by_model(
      {"first": first, "second": second}, data, settings, before
    )
    assert report.keys() == {"first", "second"}
    assert {name: one["identical"] for name, one in report.items()} == {
      "first": unchanged,
      "second": unchanged,
    }
    as_trained = retention.skill_outputs(first, data, settings, 4)
    after = retention.skill_outputs(first, data, settings, 4, later=second)
    assert (as_trained == after) == unchanged
    assert len(after.ids) == 5 and {"exact_match", "loss"} < after.scores.keys()


def test_nothing_is_retained_where_no_text_is_named(lm, data):
  assert retention.general_text_before(lm, data, SETTINGS) is None
  assert retention.forgetting_by_model({"first": tuned(lm)}, data, SETTINGS, None) == {}


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"skills": ("second",)}, "names 'second', after which no stage runs; give some of first"),
    ({"skills": ("other",)}, "names 'other'"),
    ({"general_text": "none.jsonl"}, "there is no file none.jsonl"),
    ({"skills": ("first",)}, "the test data of skill first are plain text"),
  ],
)
def test_what_cannot_be_compared(lm, data, settings, message):
  stages = {"first": dataclasses.replace(data, test=data.train), "second": data}
  with pytest.raises(UserError, match=message):
    retention.check_retention(lm, data, dataclasses.replace(SETTINGS, **settings), stages)
