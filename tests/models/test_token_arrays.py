"""What users give to frozen models: ids of no token, texts beyond the context, ragged rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.decoding.requests import Sampling
from frozen_jax.models.choice_scoring import ChoiceQuestion
from frozen_jax.models.frozen_encoder import FrozenEncoder
from frozen_jax.models.frozen_lm import FrozenLM
from tests.models.tiny import CONFIG, PARAMS  # 31 tokens

LM = FrozenLM("tiny", dataclasses.replace(CONFIG, context=8), PARAMS, None, "00")
SIZES = {"vocab_size": 31, "width": 16, "layers": 1, "heads": 2, "head_dim": 8, "mlp_width": 24}
ENCODER_CONFIG = EncoderConfig(**SIZES, context=8, types=2)
ENCODER = FrozenEncoder(
  "tiny", ENCODER_CONFIG, encoder.random_params(ENCODER_CONFIG, jax.random.key(0)), None, "00"
)
# What reads token ids.
ENTRIES = {
  "lm.embed": LM.embed,
  "lm.logits": LM.logits,
  "encoder.embed": ENCODER.embed,
  "encoder.hidden": ENCODER.hidden,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("given", [list, np.array, jnp.asarray], ids=["list", "numpy", "jax"])
def test_ids_of_no_token_are_refused(entry, given):
  run = ENTRIES[entry]
  for ids, said in (
    ([[5, 7, 31]], "row 1: token 3 has the id 31, and the model has ids from 0 to 30"),
    ([[1, 2, 3], [4, 5000, 6]], "row 2: token 2 has the id 5000"),
    ([[5, -100]], "row 1: token 2 has the id -100, .* padding of labels"),
    ([[-1, 5]], "row 1: token 1 has the id -1"),
  ):
    with pytest.raises(UserError, match=said):
      run(given(ids))
  assert np.isfinite(run(given([[0, 30]]))).all()


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_array_of_ids_is_refused(entry):
  with pytest.raises(UserError, match="token ids are whole numbers, and these are float64"):
    ENTRIES[entry]([[1.0, 2.0]])
  with pytest.raises(UserError, match="rows of token ids differ in length; pad them"):
    ENTRIES[entry]([[1, 2], [3]])
  with pytest.raises(UserError, match="has the id 4294967301"):
    ENTRIES[entry]([[2**32 + 5]])


@pytest.mark.parametrize("entry", ENTRIES)
def test_ids_that_are_no_rows_are_refused(entry):
  for ids in ([1, 2, 3], [[]], [], 5, [[[1, 2]]], np.zeros((0, 4), int), jnp.zeros((2, 0), int)):
    with pytest.raises(UserError, match=r"these are \[.*\]; give one text as \[\[1, 2, 3\]\]"):
      ENTRIES[entry](ids)


@pytest.mark.parametrize("run", [LM.logits, ENCODER.hidden], ids=["lm", "encoder"])
def test_padding_may_have_any_id(run):
  mask = np.array([[1, 1, 0], [0, 1, 1]])
  expected = np.asarray(run(np.array([[5, 6, 0], [0, 7, 8]]), mask))
  for padding in (31, -100, 2**31 - 1):
    got = np.asarray(run(np.array([[5, 6, padding], [padding, 7, 8]]), mask))
    np.testing.assert_array_equal(got, expected)
  with pytest.raises(UserError, match="row 2: token 3 has the id 31"):
    run(np.array([[5, 6, 31], [31, 7, 31]]), mask)
  with pytest.raises(UserError, match=r"the mask is \[1, 3\] and the token ids are \[2, 3\]"):
    run(np.array([[5, 6, 0], [0, 7, 8]]), mask[:1])


def test_texts_beyond_the_context_are_refused():
  said = "has 9 tokens, which do not fit the model's context of 8"
  long = np.ones((2, 9), int)
  one_short = np.array([[1] * 8 + [0], [1] * 9])
  for run in (LM.logits, lambda ids, *mask: LM.hidden(LM.embed(ids), *mask)):
    with pytest.raises(UserError, match=f"row 1 {said}"):
      run(long)
    with pytest.raises(UserError, match=f"row 2 {said}"):
      run(long, one_short)
    assert np.isfinite(run(long, one_short[[0, 0]])).all()  # padding may lie beyond it
  with pytest.raises(UserError, match=said):
    ENCODER.hidden(long)


def test_token_types_of_no_row_are_refused():
  with pytest.raises(UserError, match="the token types, row 1: token 2 has the id 2"):
    ENCODER.hidden([[5, 6]], types=[[0, 2]])
  assert np.isfinite(ENCODER.hidden([[5, 6]], types=[[0, 1]])).all()


def test_within_jit_values_are_not_known():
  ids = np.array([[5, 6, 7]])
  np.testing.assert_allclose(jax.jit(LM.logits)(ids, np.ones_like(ids)), LM.logits(ids), atol=1e-5)
  np.testing.assert_allclose(jax.jit(ENCODER.hidden)(ids), ENCODER.hidden(ids), atol=1e-5)
  assert jax.grad(lambda x: LM.hidden(x, np.ones_like(ids))[0, -1, 0])(LM.embed(ids)).shape == (
    1,
    3,
    16,
  )


def test_prompts_and_choices():
  model = LM.zero_shot()
  with pytest.raises(UserError, match="text 2: token 2 has the id 31"):
    model.complete([Prompt([4]), Prompt([4, 31])], Sampling(2))
  with pytest.raises(UserError, match="text 1: token 1 has the id -100"):
    model.complete([Prompt([-100, 4])], Sampling(2))
  choices = ChoiceQuestion(Prompt([4, 9]), [[5], [6, 40]], [1, 2])
  with pytest.raises(UserError, match="row 1, choice 2: token 2 has the id 40"):
    model.log_likelihoods([choices])
  with pytest.raises(UserError, match="row 1: token 2 has the id -1"):
    model.log_likelihoods([choices._replace(prompt=Prompt([4, -1]))])
