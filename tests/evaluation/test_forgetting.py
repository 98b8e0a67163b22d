"""Frozen methods leave the LM as it was, fine-tuning does not; and both are measured."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Prompt
from frozen_jax.data.batches import scoring_batches
from frozen_jax.data.tasks import EncoderSide
from frozen_jax.evaluation import extensibility
from frozen_jax.evaluation.forgetting import Continuations, forgetting, general_text
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.lora import Lora
from frozen_jax.methods.prompt_tuning import PromptTuning

CONFIG = DecoderConfig(
  vocab_size=40,
  width=16,
  layers=2,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_width=24,
  tied=True,
  context=64,
)
PARAMS = decoder.random_params(CONFIG, jax.random.key(0))
FROZEN = {"lm": PARAMS, "fixed": {}}
METHODS = {
  "prompt_tuning": PromptTuning(CONFIG, jnp.ones((3, 16))),
  "one_prompt_a_data_set": PromptTuning(CONFIG, jnp.ones((3, 16)), tasks=2),
  "lora": Lora(CONFIG, ("attn/q",), 2, 4.0),
  "fine_tuning": FineTuning(CONFIG, PARAMS),
}
FREEZING = ("prompt_tuning", "one_prompt_a_data_set", "lora")


@pytest.fixture(scope="module")
def words():
  vocabulary = {word: index for index, word in enumerate(["<end>", *map(str, range(1, 40))])}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<end>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, eos_token="<end>", unk_token="<end>"
  )


@pytest.fixture(scope="module")
def lm(words):
  return SimpleNamespace(config=CONFIG, params=PARAMS, tokenizer=words, mesh=None)


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  return [{"text": " ".join(map(str, rng.integers(1, 40, count)))} for count in (20, 3, 31, 9)]


@pytest.fixture(scope="module")
def batches(words, texts):
  return scoring_batches(texts, Continuations(words, 12), 4)


def place(batch):
  return {name: jnp.asarray(value) for name, value in batch.items()}


def train(method, trained, steps=3, seed=1):
  """A few plain gradient steps on random tokens."""
  tokens = jax.random.randint(jax.random.key(seed), (4, 10), 1, 40)
  batch = {"tokens": tokens, "mask": jnp.ones_like(tokens), "task": jnp.ones(4, jnp.int32)}
  batch |= {
    "target_positions": jnp.tile(jnp.arange(9), (4, 1)),
    "target_ids": tokens[:, 1:],
    "target_mask": jnp.ones_like(tokens[:, 1:]),
  }
  step = jax.jit(jax.grad(lambda tree: method.loss(tree, FROZEN, batch, None)[0]))
  for _ in range(steps):
    trained = jax.tree.map(lambda a, g: a - 0.5 * g, trained, step(trained))
  return trained


@pytest.fixture(scope="module")
def trained():
  return {name: train(method, method.init(jax.random.key(0))) for name, method in METHODS.items()}


def test_the_second_half_of_each_window_is_predicted(words, texts):
  rows = Continuations(words, 12).prepare(texts)
  assert [len(row.tokens) for row in (rows[i] for i in range(len(rows)))] == [12] * 5 + [7]
  assert [rows[i].target_start for i in range(len(rows))] == [6] * 5 + [3]
  assert rows[0].encoder_tokens is None and rows[0].task == 0


def test_an_encoder_reads_the_first_half_alone(words, texts):
  plain = Continuations(words, 12).prepare(texts)
  rows = Continuations(words, 12, EncoderSide(words, 4)).prepare(texts)
  for index in range(len(rows)):
    first = [token for token in plain[index].tokens[: plain[index].target_start] if token]
    assert list(rows[index].encoder_tokens) == first[:4]


def test_perplexity_is_that_of_the_second_halves(words, texts, lm, batches):
  rows = Continuations(words, 12).prepare(texts)
  losses = []
  for row in (rows[index] for index in range(len(rows))):
    ids = jnp.asarray([row.tokens])
    hidden = decoder.hidden(PARAMS, CONFIG, decoder.embed(PARAMS, CONFIG, ids))
    likelihood = jax.nn.log_softmax(decoder.logits(PARAMS, CONFIG, hidden)[0])
    losses += [-likelihood[at - 1, row.tokens[at]] for at in range(row.target_start, ids.shape[1])]
  figures = general_text(lm, PARAMS, batches, place)
  assert figures["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
  assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


@pytest.mark.parametrize("name", METHODS)
def test_what_training_has_done_to_the_lm(name, trained, lm, batches):
  before = general_text(lm, PARAMS, batches, place)
  found = forgetting(lm, METHODS[name], trained[name], FROZEN, batches, place, before)
  assert json.loads(json.dumps(found)) == found
  assert found["before"] == before["perplexity"]
  assert found["with_method"] != found["before"] and found["with_method_change"] != 0
  if name in FREEZING:
    assert found["identical"] and found["checksum_before"] == found["checksum_after"]
    assert found["after"] == found["before"] and found["change"] == 0
  else:
    assert not found["identical"] and found["checksum_before"] != found["checksum_after"]
    assert found["after"] == pytest.approx(found["with_method"], rel=1e-5)
    assert abs(found["change"]) > 0.1
  assert found["change"] == pytest.approx(100 * (found["after"] / found["before"] - 1))


def test_before_is_measured_where_it_is_not_given(trained, lm, batches):
  method, tree = METHODS["fine_tuning"], trained["fine_tuning"]
  before = general_text(lm, PARAMS, batches, place)
  assert forgetting(lm, method, tree, FROZEN, batches, place) == forgetting(
    lm, method, tree, FROZEN, batches, place, before
  )


def test_one_bit_of_the_frozen_weights_is_seen(trained, lm, batches):
  before = general_text(lm, PARAMS, batches, place)
  norm = PARAMS["final_norm"]["scale"]
  other = PARAMS | {"final_norm": {"scale": norm.at[3].set(jnp.nextafter(norm[3], 9.0))}}
  tree = trained["prompt_tuning"]
  frozen = FROZEN | {"lm": other}
  found = forgetting(lm, METHODS["prompt_tuning"], tree, frozen, batches, place, before)
  assert not found["identical"]


PROMPTS = [Prompt(list(range(1, 2 + n)), task=1) for n in range(7)]


def skill(name, tree, lm, **more):
  return extensibility.outputs(METHODS[name], tree, FROZEN, lm, PROMPTS, 5, batch_size=4, **more)


@pytest.mark.parametrize("name", FREEZING)
def test_a_frozen_methods_first_skill_is_untouched_by_the_second(name, trained, lm):
  before = skill(name, trained[name], lm, scores={"accuracy": 50.0})
  second = train(METHODS[name], METHODS[name].init(jax.random.key(3)), seed=2)
  after = skill(name, trained[name], lm, scores={"accuracy": 50.0})
  found = extensibility.compare(before, after)
  assert found["identical"] and found["changed"] == 0 and found["prompts"] == 7
  assert found["before"] == found["after"] == {"accuracy": 50.0}
  assert json.loads(json.dumps(found)) == found
  assert not extensibility.compare(before, skill(name, second, lm))["identical"]


def test_a_fine_tuned_first_skill_changes_with_the_second(trained, lm):
  before = skill("fine_tuning", trained["fine_tuning"], lm)
  second = train(METHODS["fine_tuning"], trained["fine_tuning"], steps=20, seed=2)
  found = extensibility.compare(before, skill("fine_tuning", second, lm))
  assert not found["identical"] and found["changed"] > 0
  assert found["logits_before"] != found["logits_after"]


def test_a_change_too_small_for_the_answers_is_seen(trained, lm):
  tree = trained["prompt_tuning"]
  other = jax.tree.map(lambda a: a * (1 + 1e-6), tree)
  found = extensibility.compare(skill("prompt_tuning", tree, lm), skill("prompt_tuning", other, lm))
  assert not found["identical"] and found["changed"] == 0


def test_outputs_on_other_prompts_cannot_be_compared():
  one, other = (extensibility.Outputs("", ((1,),) * count, {}) for count in (1, 2))
  with pytest.raises(ValueError):
    extensibility.compare(one, other)
