"""Prompts in, new token ids out: batching, stopping and what does not fit."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.decoding.requests import Sampling
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.models.generation import beam_search, complete, complete_texts
from frozen_jax.modules.settings import PromptSettings
from tests.models import tiny
from tests.models.tiny import PARAMS

CONFIG = dataclasses.replace(tiny.CONFIG, context=40)
FROZEN = {"lm": PARAMS, "frozen_inputs": {}}
METHOD = ZeroShot(CONFIG)
TEXTS = [[4, 9, 3], [7], [5, 2, 8, 19, 21, 3, 3], list(range(1, 20)), [4, 9, 3]]
PROMPTS = [Prompt(text) for text in TEXTS]


class Numbers:
  """A tokenizer whose words are the ids themselves; 30 ends."""

  eos_token_id = 30

  def decode(self, ids, skip_special_tokens):
    assert skip_special_tokens
    return " ".join(map(str, ids))


def model_with(tokenizer=None, method=METHOD, trained=None):
  lm = SimpleNamespace(config=CONFIG, params=PARAMS, tokenizer=tokenizer, mesh=None)
  return SimpleNamespace(lm=lm, method=method, trained=trained or {}, frozen=FROZEN)


def encode(text):
  return Prompt([int(word) for word in text.split()])


def new_ids(prompts, sampling, rows, tokenizer=None, **tuned):
  completions = complete(model_with(tokenizer, **tuned), prompts, sampling, rows)
  return [first.ids for first, *_ in completions]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_batches_do_not_matter(how):
  sampling = Sampling(6, **how)
  whole = new_ids(PROMPTS, sampling, rows=8)
  assert whole == new_ids(PROMPTS, sampling, rows=2)
  assert [len(new) for new in whole] == [6] * 5
  assert whole[0] == whole[4], "the same seed and prompt give the same text"


def test_what_follows_the_end_is_cut():
  free = new_ids(PROMPTS, Sampling(6), 8)
  ends = Numbers()
  ends.eos_token_id = free[3][2]
  cut = new_ids(PROMPTS, Sampling(6), 8, ends)
  for new, before in zip(cut, free, strict=True):
    stop = before.index(ends.eos_token_id) if ends.eos_token_id in before else len(before)
    assert new == before[:stop]
  assert len(cut[3]) <= 2


def test_texts():
  model = model_with(Numbers())
  texts = [" ".join(map(str, ids)) for ids in TEXTS]

  def completed(**how):
    encode_all = lambda texts: [encode(text) for text in texts]
    return complete_texts(model, texts, encode_all, Sampling(4, **how))

  assert completed() == [
    " ".join(map(str, new)) for new in new_ids(PROMPTS, Sampling(4), 8, Numbers())
  ]
  samples = completed(num_samples=3, temperature=2.0)
  assert [len(one) for one in samples] == [3] * 5
  assert len({text for one in samples for text in one}) > 5


@pytest.mark.parametrize(
  "prompts, new, message",
  [
    ([[1], []], 4, "text 2 is empty"),
    ([[1], [2] * 37], 4, "text 2 has 37 tokens, which with 4 new ones do not fit .* of 40"),
    ([[1]], 40, "text 1 has 1 tokens"),
  ],
)
def test_what_does_not_fit(prompts, new, message):
  with pytest.raises(UserError, match=message):
    new_ids([Prompt(ids) for ids in prompts], Sampling(new), 8)


def test_the_trained_prompt_takes_room_too():
  tuned = {
    "method": PromptTuning(CONFIG, PromptSettings(length=10)),
    "trained": {"prompt": {"vectors": np.zeros((10, 16), np.float32)}},
  }
  with pytest.raises(UserError, match="27 tokens.* 4 new ones and the 10 of the trained prompt"):
    new_ids([Prompt([1] * 27)], Sampling(4), 8, **tuned)
  assert len(new_ids([Prompt([1] * 26)], Sampling(4), 8, **tuned)[0]) == 4


@pytest.mark.parametrize(
  "values", [{"max_new_tokens": 0}, {"num_samples": 0}, {"temperature": -0.5}], ids=str
)
def test_sampling_that_makes_no_sense(values):
  (name,) = values
  with pytest.raises(UserError, match=f"{name} is"):
    Sampling(**({"max_new_tokens": 4} | values))


def test_beams_come_best_first_with_their_texts():
  beams = beam_search(model_with(Numbers()), PROMPTS, num_beams=3, max_new_tokens=4, rows=6)
  assert [row == sorted(row, key=lambda one: -one.total_log_prob) for row in beams] == [True] * 5
  assert [len(row) for row in beams] == [3] * 5 and beams[0] == beams[4]
  for one in beams[0]:
    assert one.text == " ".join(map(str, one.ids)) and 30 not in one.ids


@pytest.mark.parametrize(
  "numbers, message",
  [
    ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be at least 1"),
    ({"max_new_tokens": 40}, "text 1 has 3 tokens, which with 40 new ones do not fit"),
  ],
)
def test_beams_that_make_no_sense(numbers, message):
  with pytest.raises(UserError, match=message):
    beam_search(model_with(), PROMPTS, **({"num_beams": 2, "max_new_tokens": 2} | numbers))


def test_nothing_to_continue():
  assert new_ids([], Sampling(4), 8) == []
