"""Frozen methods leave the LM unchanged, fine-tuning does not; and both are measured."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.backbones import decoder
from frozen_jax.core.types import Prompt
from frozen_jax.data.batches import scoring_batches
from frozen_jax.data.tasks import EncoderTokenizer
from frozen_jax.decoding.settings import GenerationSettings
from frozen_jax.evaluation import extensibility
from frozen_jax.evaluation.forgetting import TextHalves, forgetting, general_text
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.lora import Lora, LoraSettings
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.settings import PromptSettings
from tests.evaluation.tiny import CONFIG, PARAMS, tiny_lm, train, tuned, words

pytestmark = pytest.mark.program

PROMPT = PromptSettings(length=3, text="")
METHODS = {
  "prompt_tuning": PromptTuning(CONFIG, PROMPT),
  "one_prompt_a_data_set": PromptTuning(CONFIG, PROMPT, num_tasks=2),
  "lora": Lora(CONFIG, LoraSettings(rank=2, alpha=4.0, targets=("attn/q",))),
  "fine_tuning": FineTuning(CONFIG),
}
FREEZING = ("prompt_tuning", "one_prompt_a_data_set", "lora")
SETTINGS = GenerationSettings(max_new_tokens=5, batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
  return words()


@pytest.fixture(scope="module")
def lm(tokenizer):
  return tiny_lm(tokenizer=tokenizer)


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  return [{"text": " ".join(map(str, rng.integers(1, 40, count)))} for count in (20, 3, 31, 9)]


@pytest.fixture(scope="module")
def batches(tokenizer, texts):
  return scoring_batches(texts, TextHalves(tokenizer, 12), 4)


def fresh(lm, name, seed=0):
  method = METHODS[name]
  return tuned(lm, method, method.init(lm, jax.random.key(seed)), generation=SETTINGS)


@pytest.fixture(scope="module")
def trained(lm):
  return {name: train(fresh(lm, name)) for name in METHODS}


def test_the_second_half_of_each_window_is_predicted(tokenizer, texts):
  rows = TextHalves(tokenizer, 12).prepare(texts)
  assert [len(row.tokens) for row in (rows[i] for i in range(len(rows)))] == [12] * 5 + [7]
  assert [rows[i].target_start for i in range(len(rows))] == [6] * 5 + [3]
  assert rows[0].encoder_tokens is None and rows[0].task == 0


def test_an_encoder_reads_the_first_half_alone(tokenizer, texts):
  plain = TextHalves(tokenizer, 12).prepare(texts)
  rows = TextHalves(tokenizer, 12, EncoderTokenizer(tokenizer, 4)).prepare(texts)
  for index in range(len(rows)):
    first = [token for token in plain[index].tokens[: plain[index].target_start] if token]
    assert list(rows[index].encoder_tokens) == first[:4]


def test_perplexity_is_that_of_the_second_halves(tokenizer, texts, lm, batches):
  rows = TextHalves(tokenizer, 12).prepare(texts)
  losses = []
  for row in (rows[index] for index in range(len(rows))):
    ids = jnp.asarray([row.tokens])
    hidden = decoder.hidden(PARAMS, CONFIG, decoder.embed(PARAMS, CONFIG, ids))
    log_probs = jax.nn.log_softmax(decoder.logits(PARAMS, CONFIG, hidden)[0])
    losses += [-log_probs[i - 1, row.tokens[i]] for i in range(row.target_start, ids.shape[1])]
  scores = general_text(lm, batches)
  assert scores["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
  assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


@pytest.mark.parametrize("name", METHODS)
def test_what_training_has_changed_of_the_lm(name, trained, lm, batches):
  before = general_text(lm, batches)
  report = forgetting(trained[name], batches, before)
  assert json.loads(json.dumps(report)) == report
  assert report["before"] == before["perplexity"]
  assert report["with_method"] != report["before"] and report["with_method_change"] != 0
  if name in FREEZING:
    assert report["identical"] and report["checksum_before"] == report["checksum_after"]
    assert report["after"] == report["before"] and report["change"] == 0
  else:
    assert not report["identical"] and report["checksum_before"] != report["checksum_after"]
    assert report["after"] == pytest.approx(report["with_method"], rel=1e-5)
    assert abs(report["change"]) > 0.1
  assert report["change"] == pytest.approx(100 * (report["after"] / report["before"] - 1))


def test_before_is_measured_where_it_is_not_given(trained, lm, batches):
  model = trained["fine_tuning"]
  assert forgetting(model, batches) == forgetting(model, batches, general_text(lm, batches))


def test_one_bit_of_the_frozen_weights_is_seen(trained, lm, batches):
  before = general_text(lm, batches)
  norm = PARAMS["final_norm"]["scale"]
  other = PARAMS | {"final_norm": {"scale": norm.at[3].set(jnp.nextafter(norm[3], 9.0))}}
  model = dataclasses.replace(trained["prompt_tuning"], lm=dataclasses.replace(lm, params=other))
  assert not forgetting(model, batches, before)["identical"]


PROMPTS = [Prompt(list(range(1, 2 + n)), task=1) for n in range(7)]


@pytest.mark.parametrize("name", FREEZING)
def test_a_frozen_methods_first_skill_is_untouched_by_the_second(name, trained, lm):
  before = extensibility.outputs(trained[name], PROMPTS, {"accuracy": 50.0})
  second = train(fresh(lm, name, seed=3), seed=2)
  after = extensibility.outputs(trained[name], PROMPTS, {"accuracy": 50.0})
  report = extensibility.compare_outputs(before, after)
  assert report["identical"] and report["changed"] == 0 and report["prompts"] == 7
  assert report["before"] == report["after"] == {"accuracy": 50.0}
  assert json.loads(json.dumps(report)) == report
  others = extensibility.outputs(second, PROMPTS)
  assert not extensibility.compare_outputs(before, others)["identical"]
  assert max(map(len, before.ids)) <= 5


def test_a_fine_tuned_first_skill_changes_with_the_second(trained):
  model = trained["fine_tuning"]
  before = extensibility.outputs(model, PROMPTS)
  after = extensibility.outputs(train(model, steps=20, seed=2), PROMPTS)
  report = extensibility.compare_outputs(before, after)
  assert not report["identical"] and report["changed"] > 0
  assert report["logits_before"] != report["logits_after"]


def test_a_change_too_small_for_the_answers_is_seen(trained):
  model = trained["prompt_tuning"]
  other = model.with_trained(jax.tree.map(lambda a: a * (1 + 1e-6), model.trained))
  report = extensibility.compare_outputs(
    extensibility.outputs(model, PROMPTS), extensibility.outputs(other, PROMPTS)
  )
  assert not report["identical"] and report["changed"] == 0


def test_outputs_on_other_prompts_cannot_be_compared():
  one, other = (extensibility.Outputs("", ((1,),) * count, {}) for count in (1, 2))
  with pytest.raises(ValueError):
    extensibility.compare_outputs(one, other)
