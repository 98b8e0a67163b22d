"""Log-likelihoods of choices: whatever the batches, each choice is scored as if alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.models import choice_scoring
from frozen_jax.models.choice_scoring import ChoiceQuestion, choice_log_likelihoods
from frozen_jax.sharding.mesh import make_mesh
from tests.models.tiny import CONFIG, PARAMS


def model_with(params=PARAMS, mesh=None):
  lm = SimpleNamespace(config=CONFIG, params=params, tokenizer=None, mesh=mesh)
  frozen = {"lm": params, "frozen_inputs": {}}
  return SimpleNamespace(lm=lm, method=ZeroShot(CONFIG), trained={}, frozen=frozen)


MODEL = model_with()


def question(prompt, *choices, labels=(0,)):
  return ChoiceQuestion(Prompt(prompt), choices, [3 * len(choice) for choice in choices], labels)


def many(count=23):
  """Rows of all shapes: prompts of 1 to 40 tokens, 1 to 5 choices of 1 to 9 tokens."""
  draw = np.random.default_rng(0)
  text = lambda longest: draw.integers(1, 31, draw.integers(1, longest)).tolist()
  rows = [question(text(40), *(text(10) for _ in range(draw.integers(1, 6)))) for _ in range(count)]
  return [*rows, question([4, 9], [5], [6]), question([7] * 30, [8], [9], [10])]


@jax.jit
def log_probabilities(tokens):
  states = decoder.hidden(PARAMS, CONFIG, decoder.embed(PARAMS, CONFIG, tokens))
  return jax.nn.log_softmax(decoder.logits(PARAMS, CONFIG, states)[0])


def by_hand(prompt, choice):
  text = [*prompt, *choice]
  log_probs = log_probabilities(jnp.asarray([text + [0] * (50 - len(text))]))
  return sum(float(log_probs[i - 1, text[i]]) for i in range(len(prompt), len(text)))


@pytest.mark.parametrize(
  "how", [{}, {"batch_size": 4}, {"batch_size": 3, "max_tokens": 100}, {"max_tokens": 1}], ids=str
)
def test_the_batches_do_not_matter(how):
  questions = many()
  results = choice_log_likelihoods(MODEL, questions, **how)
  assert [len(of_row) for of_row in results] == [len(q.choices) for q in questions]
  expected = [by_hand(q.prompt.tokens, choice) for q in questions for choice in q.choices]
  np.testing.assert_allclose(np.concatenate(results), expected, atol=1e-4)


def test_batches_are_few_and_bounded():
  questions = many(200)
  seen, shapes = [], set()
  for rows, prompts, choices, mask in choice_scoring._batches(questions, 16, 1000, 2):
    seen += rows
    size = len(prompts["tokens"])
    assert size <= 16 and size % 2 == 0
    assert prompts["tokens"].size + choices.size <= 1000
    assert mask[: len(rows), :, 0].any(axis=1).all() and not mask[len(rows) :].any()
    shapes.add((prompts["tokens"].shape, choices.shape))
  assert sorted(seen) == list(range(202))
  assert len(shapes) <= 15


def test_shapes_of_few_rows_join_larger_ones(monkeypatch):
  monkeypatch.setattr(choice_scoring, "_COMPILING", {"cpu": 100, "gpu": 0})
  small, large = question([1], [2], [3]), question([1], [2, 3], [4], [5])
  sizes = lambda *rows: [len(batch[0]) for batch in choice_scoring._batches(rows, 16, 1000)]
  assert sizes(*[small] * 3, *[large] * 9) == [12]  # 12 tokens of padding each
  assert sizes(*[small] * 9, *[large] * 9) == [9, 9]
  assert sizes(*[small] * 17) == [9, 8]  # batches of one size


def test_choices_of_one_token_have_few_counts():
  """Nothing of them is read, so that a row with more of them takes no longer."""
  counts = (1, 2, 3, 4, 5, 8)
  rows = [question([1], *[[token] for token in range(2, 2 + count)]) for count in counts]
  shapes = lambda rows: [one[2].shape for one in choice_scoring._batches(rows, 16, 1000)]
  assert shapes(rows) == [(6, 8, 1)]
  assert [shapes([row]) for row in rows] == [[(1, count, 1)] for count in (4, 4, 4, 4, 8, 8)]


@pytest.mark.parametrize(
  "wrong, message",
  [
    (question([1]), "row 2 has no choices"),
    (question([1], [2], []), "row 2: choice 2 has no tokens"),
    (question([], [2]), "row 2 is empty"),
    (question([1] * 55, [2], [3] * 6), "row 2 has 55 tokens, which with 6 new ones .* of 60"),
  ],
)
def test_what_cannot_be_scored(wrong, message):
  with pytest.raises(UserError, match=message):
    choice_log_likelihoods(MODEL, [question([1], [2]), wrong])


def test_a_likelihood_that_is_no_number():
  poisoned = model_with(jax.tree.map(lambda a: a * jnp.nan, PARAMS))
  with pytest.raises(UserError, match="row 1: the likelihood of a choice is not a number"):
    choice_log_likelihoods(poisoned, [question([1], [2, 3], [4])])


def test_nothing_to_score():
  assert choice_log_likelihoods(MODEL, []) == []


def test_eight_devices_equal_one():
  questions, spread = many(), model_with(mesh=make_mesh(data=8))
  for one, eight in zip(
    choice_log_likelihoods(MODEL, questions), choice_log_likelihoods(spread, questions), strict=True
  ):
    np.testing.assert_allclose(one, eight, atol=1e-5)
