"""Beam search against all continuations, against transformers, and batched against one by one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from benchmarks import hf_copy
from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.load import Decoder
from frozen_jax.core.types import Prompt
from frozen_jax.decoding import beam
from frozen_jax.decoding.engine import Engine
from frozen_jax.decoding.requests import Sampling
from frozen_jax.methods.layer_passes import LayerPasses
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules.connector import ConnectorConfig
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.sharding.batch import shard_batch
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.sharding.rules import replicated
from frozen_jax.text.padding import pad_sequences
from tests.methods.tiny import base

pytestmark = pytest.mark.program

SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 48}
CONFIG = DecoderConfig(vocab_size=61, tied=True, **SIZES)
PARAMS = lm.random_params(CONFIG, jax.random.key(0))
FEW = DecoderConfig(vocab_size=4, tied=True, **SIZES)
FEW_PARAMS = lm.random_params(FEW, jax.random.key(1))
START = PromptSettings(length=3, text="")
ENDS = (3, 9, 14, 22, 57)  # enough for some to occur
PROMPTS = [
  Prompt(np.random.default_rng(n).integers(1, 60, length).tolist())
  for n, length in enumerate((3, 1, 7, 19, 40, 3, 12))
]


def build_engine(method, params, trained=None, **how):
  frozen = {"lm": params, "frozen_inputs": {}}
  return Engine(
    method,
    trained or {},
    frozen,
    functools.partial(shard_batch, mesh=None),
    **({"end_ids": ENDS} | how),
  )


@jax.jit
def likely(tokens, mask):
  """Log-probabilities of the token after each one, [B, T, V]."""
  states = lm.hidden(FEW_PARAMS, FEW, lm.embed(FEW_PARAMS, FEW, tokens), mask)
  return jax.nn.log_softmax(lm.logits(FEW_PARAMS, FEW, states))


def every_continuation(prompt, new, end):
  """{ids with the end token: log-probability} of all that the small vocabulary allows."""
  every_text = list(itertools.product(range(4), repeat=new))
  rows = [[*prompt.tokens, *ids] for ids in every_text]
  expected = np.asarray(likely(*pad_sequences(rows, 20, 64)))[: len(rows)]
  results = {}
  for ids, rows in zip(every_text, expected[:, len(prompt.tokens) - 1 :], strict=True):
    length = ids.index(end) + 1 if end in ids else new
    results[ids[:length]] = float(sum(rows[place, ids[place]] for place in range(length)))
  return results


def with_end(one, end):
  return (*one.ids, end) if one.finish_reason == "eos" else tuple(one.ids)


@pytest.mark.parametrize("new, enough", [(1, 4), (3, 48)])
def test_enough_beams_find_everything(new, enough):
  prompts = [Prompt([1]), Prompt([2, 0, 1, 1]), Prompt([3] * 17)]
  engine = build_engine(ZeroShot(FEW), FEW_PARAMS, end_ids=(2,))
  for prompt, results in zip(prompts, beam.search(engine, prompts, enough, new), strict=True):
    wanted = every_continuation(prompt, new, 2)
    order = sorted(wanted, key=wanted.get, reverse=True)
    assert [with_end(one, 2) for one in results] == order[:enough]
    np.testing.assert_allclose(
      [one.total_log_prob for one in results], [wanted[ids] for ids in order], 1e-4
    )
    assert sum(np.exp(one.total_log_prob) for one in results) == pytest.approx(1, abs=1e-4)
    for one in results:
      assert one.finish_reason == ("eos" if len(one.ids) < new else "length")
      cut = wanted[(*one.ids, 2)] if one.finish_reason == "eos" else one.total_log_prob
      assert len(one.log_probs) == len(one.ids) and sum(one.log_probs) >= cut - 1e-4


def test_there_are_no_more_than_the_vocabulary_has():
  engine = build_engine(ZeroShot(FEW), FEW_PARAMS, end_ids=(2,))
  (results,) = beam.search(engine, [Prompt([1])], 9, 1)
  assert sorted(with_end(one, 2) for one in results) == [(0,), (1,), (2,), (3,)]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("peer")
  hf_copy.write(Decoder("tiny", CONFIG, PARAMS, None, ""), folder)
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("num_beams, new", [(3, 8), (5, 3), (7, 12)])
def test_equals_transformers(peer, num_beams, new):
  results = beam.search(build_engine(ZeroShot(CONFIG), PARAMS), PROMPTS, num_beams, new)
  assert len({one.finish_reason for row in results for one in row}) == 2
  for prompt, row in zip(PROMPTS, results, strict=True):
    tokens = torch.tensor([prompt.tokens])
    expected = peer.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=new,
      num_beams=num_beams,
      num_return_sequences=num_beams,
      length_penalty=0.0,
      early_stopping="never",
      do_sample=False,
      eos_token_id=list(ENDS),
      pad_token_id=60,
      return_dict_in_generate=True,
      output_scores=True,
    )
    texts = expected.sequences[:, len(prompt.tokens) :].tolist()
    for one, text in zip(row, texts, strict=True):
      length = next((i for i, token in enumerate(text) if token in ENDS), new)
      assert one.ids == text[:length] and one.finish_reason == ("eos" if length < new else "length")
    scores = expected.sequences_scores.tolist()
    np.testing.assert_allclose([one.total_log_prob for one in row], scores, atol=2e-4)


METHODS = [
  PromptTuning(CONFIG, START),
  NeuralRecursion(LayerPasses(CONFIG), ConnectorConfig(16, 2, 2, zero_output=False), 0.1, START),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_batch_equals_one_at_a_time_and_scores_are_those_of_the_texts(method):
  init = jax.jit(lambda key: method.init(base(CONFIG, PARAMS), key))
  trained = jax.tree.map(lambda a: a + 0.02, init(jax.random.key(2)))
  engine = build_engine(method, PARAMS, trained, rows=16)
  log_likelihoods = jax.jit(method.log_likelihoods)
  prompts = [*PROMPTS[:4], PROMPTS[5]]
  results = beam.search(engine, prompts, 4, 5)
  for prompt, row in zip(prompts, results, strict=True):
    (alone,) = beam.search(engine, [prompt], 4, 5)
    assert [one.ids for one in row] == [one.ids for one in alone]
    assert [one.total_log_prob for one in row] == sorted(
      (one.total_log_prob for one in row), reverse=True
    )
    for one in row:
      assert one.total_log_prob == pytest.approx(
        rescored(engine, log_likelihoods, prompt, one), abs=3e-4
      )


def rescored(engine, log_likelihoods, prompt, one):
  """The log-probability of a continuation by `log_likelihoods`; of the likeliest end token.

  Everything is padded to one shape, so that it is compiled once.
  """
  ended = one.finish_reason == "eos"
  choices, choice_mask = padded([[*one.ids, end][: len(one.ids) + ended] for end in ENDS], 6)
  tokens, mask = padded([prompt.tokens], 20)
  likely = log_likelihoods(
    engine.trainable,
    engine.frozen,
    {"tokens": tokens, "mask": mask},
    choices[None],
    choice_mask[None],
  )[0]
  return float(likely[jnp.argmin(jnp.abs(likely - one.total_log_prob))])


def padded(rows, length):
  """(ids, mask), int [len(rows), length]."""
  ids = [row + [0] * (length - len(row)) for row in rows]
  return np.array(ids), np.array([np.arange(length) < len(row) for row in rows]).astype(int)


def test_one_beam_is_greedy():
  engine = build_engine(ZeroShot(CONFIG), PARAMS)
  for (one,), (other,) in zip(
    beam.search(engine, PROMPTS[:4], 1, 8), engine.run(PROMPTS[:4], Sampling(8)), strict=True
  ):
    assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
    assert one.total_log_prob == pytest.approx(other.total_log_prob, abs=2e-4)
    assert np.isnan(one.min_margin)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-4)


def test_little_memory_means_fewer_at_once_and_the_same_texts():
  engine = build_engine(ZeroShot(CONFIG), PARAMS, cache_bytes=1)
  assert beam._max_rows(engine, PROMPTS[0], 16, 4, 5) == 1
  results = beam.search(engine, PROMPTS[:3], 4, 5)
  large = build_engine(ZeroShot(CONFIG), PARAMS)
  assert beam._max_rows(large, PROMPTS[0], 16, 4, 5) == large.rows // 4
  for row, other in zip(results, beam.search(large, PROMPTS[:3], 4, 5), strict=True):
    assert [one.ids for one in row] == [one.ids for one in other]


class Endless:
  """Token 0 has nearly all the probability, 1 ends; counts its steps."""

  name = "endless"
  likely = jnp.log(jnp.asarray([0.001, 0.998, 0.001]))

  def __init__(self):
    self.steps = 0

  def num_virtual_tokens(self, trainable, frozen):
    return 0

  def prefill(self, trainable, frozen, prompts, max_new_tokens, free_slots):
    return jnp.tile(self.likely, (len(prompts["mask"]), 1)), jnp.zeros(len(prompts["mask"]))

  def decode(self, trainable, frozen, tokens, state):
    def step(_):
      self.steps += 1

    jax.debug.callback(step, state)
    return jnp.tile(self.likely, (len(tokens), 1)), state


def test_it_ends_when_nothing_can_get_better():
  """The end is 0.998 likely at once; the second best takes one step more than that."""
  method = Endless()
  engine = Engine(method, {}, {}, functools.partial(shard_batch, mesh=None), end_ids=(1,))
  results = beam.search(engine, [Prompt([2]), Prompt([2, 2])] * 3, 2, 50)
  jax.effects_barrier()
  assert [one.ids for one in results[0]] == [[], [0]] and method.steps <= 2


def test_a_mesh_changes_nothing():
  mesh = make_mesh(data=4, tensor=2)
  method = ZeroShot(CONFIG)
  frozen = {"lm": PARAMS, "frozen_inputs": {}}
  sharded = Engine(
    method, {}, frozen, functools.partial(shard_batch, mesh=mesh), replicated(mesh), ENDS
  )
  results = beam.search(sharded, PROMPTS, 3, 4)
  for row, other in zip(
    results, beam.search(build_engine(method, PARAMS), PROMPTS, 3, 4), strict=True
  ):
    assert [one.ids for one in row] == [one.ids for one in other]


def test_nothing_to_continue():
  assert beam.search(build_engine(ZeroShot(CONFIG), PARAMS), [], 3, 4) == []
