"""Prompts in, new token ids out: batching, stopping and what does not fit."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.decoding.requests import Sampling
from frozen_jax.evaluation.generation import beams, generate_ids, generate_texts
from frozen_jax.methods.prompt_tuning import PromptTuning

CONFIG = DecoderConfig(
  vocab_size=31,
  width=16,
  layers=1,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  tied=True,
  context=40,
)
PARAMS = decoder.random_params(CONFIG, jax.random.key(3))
FROZEN = {"lm": PARAMS, "fixed": {}}
METHOD = PromptTuning(CONFIG, None)
TEXTS = [[4, 9, 3], [7], [5, 2, 8, 19, 21, 3, 3], list(range(1, 20)), [4, 9, 3]]
PROMPTS = [Prompt(text) for text in TEXTS]


class Numbers:
  """A tokenizer whose words are the ids themselves; 30 ends."""

  eos_token_id = 30

  def decode(self, ids, skip_special_tokens):
    assert skip_special_tokens
    return " ".join(map(str, ids))


def lm_with(tokenizer):
  return SimpleNamespace(config=CONFIG, params=PARAMS, tokenizer=tokenizer, mesh=None)


def encode(text):
  return Prompt([int(word) for word in text.split()])


def new_ids(prompts, sampling, batch_size, tokenizer=None, trainable=None):
  lm = lm_with(tokenizer)
  return generate_ids(METHOD, trainable or {}, FROZEN, lm, prompts, sampling, batch_size)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_batches_do_not_matter(how):
  sampling = Sampling(6, **how)
  whole = new_ids(PROMPTS, sampling, batch_size=8)
  assert whole == new_ids(PROMPTS, sampling, batch_size=2)
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
  lm = lm_with(Numbers())
  texts = [" ".join(map(str, ids)) for ids in TEXTS]

  def continued(**how):
    read = lambda given: [encode(text) for text in given]
    return generate_texts(METHOD, {}, FROZEN, lm, texts, read, Sampling(4, **how))

  assert continued() == [
    " ".join(map(str, new)) for new in new_ids(PROMPTS, Sampling(4), 8, lm.tokenizer)
  ]
  samples = continued(num_samples=3, temperature=2.0)
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
  trained = {"prompt": {"vectors": np.zeros((10, 16), np.float32)}}
  with pytest.raises(UserError, match="27 tokens.* 4 new ones and the 10 of the trained prompt"):
    new_ids([Prompt([1] * 27)], Sampling(4), 8, trainable=trained)
  assert len(new_ids([Prompt([1] * 26)], Sampling(4), 8, trainable=trained)[0]) == 4


@pytest.mark.parametrize(
  "values", [{"max_new_tokens": 0}, {"num_samples": 0}, {"temperature": -0.5}], ids=str
)
def test_sampling_that_makes_no_sense(values):
  (name,) = values
  with pytest.raises(UserError, match=f"{name} is"):
    Sampling(**({"max_new_tokens": 4} | values))


def test_beams_come_best_first_with_their_texts():
  lm = lm_with(Numbers())
  found = beams(METHOD, {}, FROZEN, lm, PROMPTS, num_beams=3, max_new_tokens=4, rows=6)
  assert [row == sorted(row, key=lambda one: -one.total) for row in found] == [True] * 5
  assert [len(row) for row in found] == [3] * 5 and found[0] == found[4]
  for one in found[0]:
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
    beams(
      METHOD,
      {},
      FROZEN,
      lm_with(None),
      PROMPTS,
      **({"num_beams": 2, "max_new_tokens": 2} | numbers),
    )


def test_nothing_to_continue():
  assert new_ids([], Sampling(4), 8) == []
