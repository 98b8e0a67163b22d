"""The engine against a plain loop, one prompt at a time, without a cache; and its own logic."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from frozen_jax.backbones import decoder as lm
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core.types import Prompt
from frozen_jax.decoding import engine_programs as programs
from frozen_jax.decoding import sampling as sampling_module
from frozen_jax.decoding.engine import Engine
from frozen_jax.decoding.prompts import group_buckets
from frozen_jax.decoding.requests import Sampling, seed_of
from frozen_jax.methods.layer_passes import LayerPasses
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.prefix_tuning import PrefixTuning
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.zero_shot import ZeroShot
from frozen_jax.modules.connector import ConnectorConfig
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.sharding.batch import shard_batch
from tests.methods.tiny import base

pytestmark = pytest.mark.program

CONFIG = DecoderConfig(
  vocab_size=61, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, tied=True
)
PARAMS = lm.random_params(CONFIG, jax.random.key(0))
FROZEN = {"lm": PARAMS, "frozen_inputs": {}}
START = PromptSettings(length=3, text="")
SINGLE = ZeroShot(CONFIG)
CONNECTOR = ConnectorConfig(16, 2, 2, zero_output=False)
RECURSION = NeuralRecursion(LayerPasses(CONFIG), CONNECTOR, 0.1, START)
LENGTHS = (3, 1, 7, 19, 12, 3, 70, 5, 11)
PROMPTS = [
  Prompt(np.random.default_rng(n).integers(1, 60, length).tolist())
  for n, length in enumerate(LENGTHS)
]


def words(ids):
  return " ".join(f"w{number}" for number in ids)


def build_engine(method=SINGLE, trained=None, **how):
  how = {"rows": 4, "steps": 3, "decode": words} | how
  return Engine(method, trained or {}, FROZEN, functools.partial(shard_batch, mesh=None), **how)


def trained_of(method):
  return jax.jit(lambda key: method.init(base(CONFIG, PARAMS), key))(jax.random.key(2))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("sampled", "truncated"))
def next_token(method, trained, text, how, seeds, sample, place, *, sampled, truncated):
  """The next token of one text, {"tokens", "mask"} [1, T], read anew, and the logits it is of."""
  logits = method.prefill(trained, FROZEN, text, 0, 0)[0]
  number = sampling_module.uniforms(seeds, sample, place)
  return sampling_module.sample(logits, number, how, sampled=sampled, truncated=truncated), logits


def reference(method, trained, prompt, sampling, sample=0, end_ids=()):
  """One prompt, one token after another, each from a pass over the whole text.

  What was written, as (token, log-probability); and the least margin, the end token's included.
  """
  text, written, margin = list(prompt.tokens), [], np.inf
  options = (
    np.float32([sampling.temperature]),
    np.int32([sampling.top_k]),
    np.float32([sampling.top_p]),
  )
  how, seeds = sampling_module.SamplingOptions(*options), np.uint32([seed_of(sampling, prompt)])
  kind = {"sampled": sampling.temperature > 0, "truncated": sampling.truncated}
  for place in range(sampling.max_new_tokens):
    tokens = np.zeros((1, 96), np.int32)
    tokens[0, : len(text)] = text
    mask = (np.arange(96) < len(text)).astype(np.int32)[None]
    given = {"tokens": tokens, "mask": mask}, how, seeds, np.int32([sample]), np.int32([place])
    new, logits = next_token(method, trained, *given, **kind)
    token, (second, first) = int(new.tokens[0]), np.sort(np.asarray(logits[0]))[-2:]
    margin = np.nan if sampling.temperature else min(margin, first - second)
    if token in end_ids:
      break
    written.append((token, float(new.log_probs[0])))
    text.append(token)
    if any(stop in words([t for t, _ in written]) for stop in sampling.stop):
      break
  return written, margin


@pytest.mark.parametrize(
  "how",
  [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 7, "seed": 3},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.0, "num_samples": 5},
  ],
  ids=str,
)
def test_texts_are_those_of_a_loop_over_one_prompt(how):
  sampling = Sampling(8, **how)
  completions = build_engine(end_ids=(9, 14)).run(PROMPTS, sampling)
  for prompt, samples in zip(PROMPTS, completions, strict=True):
    assert len(samples) == sampling.num_samples
    for sample, one in enumerate(samples):
      wanted, margin = reference(SINGLE, {}, prompt, sampling, sample, (9, 14))
      assert one.ids == [token for token, _ in wanted]
      np.testing.assert_allclose(one.log_probs, [p for _, p in wanted], atol=2e-4)
      np.testing.assert_allclose(one.min_margin, margin, atol=2e-4)
      assert one.text == words(one.ids)
      assert one.finish_reason == ("length" if len(one.ids) == 8 else "eos")


@pytest.mark.parametrize(
  "method",
  [PromptTuning(CONFIG, START), RECURSION, PrefixTuning(CONFIG, START)],
  ids=lambda method: method.name,
)
def test_every_method_is_carried(method):
  trained = jax.tree.map(lambda a: a + 0.02, trained_of(method))
  sampling = Sampling(6, temperature=1.0, num_samples=2)
  completions = build_engine(method, trained).run(PROMPTS[:5], sampling)
  for prompt, samples in zip(PROMPTS, completions, strict=False):
    for sample, one in enumerate(samples):
      wanted, _ = reference(method, trained, prompt, sampling, sample)
      assert one.ids == [token for token, _ in wanted]


@pytest.mark.parametrize(
  "method",
  [PromptTuning(CONFIG, START), RECURSION, PrefixTuning(CONFIG, START)],
  ids=lambda method: method.name,
)
def test_an_int8_cache_changes_log_probabilities_little(method):
  trained = jax.tree.map(lambda a: a + 0.02, trained_of(method))
  narrow = dataclasses.replace(CONFIG, cache="int8")
  if method is RECURSION:
    layers = dataclasses.replace(method.layers, decoder=narrow)
    quantized = dataclasses.replace(method, layers=layers)
  else:
    quantized = dataclasses.replace(method, decoder=narrow)
  completions = build_engine(quantized, trained).run(PROMPTS[:5], Sampling(6, temperature=1.0))
  log_likelihoods = jax.jit(method.log_likelihoods)
  differences = []
  for prompt, (one,) in zip(PROMPTS, completions, strict=False):
    batch = {"tokens": np.zeros((1, 48), np.int32), "mask": np.zeros((1, 48), np.int32)}
    batch["tokens"][0, : len(prompt.tokens)] = prompt.tokens
    batch["mask"][0, : len(prompt.tokens)] = 1
    ids = np.asarray([[one.ids]])
    log_likelihood = log_likelihoods(trained, FROZEN, batch, ids, np.ones_like(ids))
    differences.append(abs(one.total_log_prob - float(log_likelihood[0, 0])))
  assert 1e-6 < max(differences) < 0.1


def test_stop_texts_end_a_row_and_its_text():
  free = build_engine().run(PROMPTS, Sampling(10))
  stop = f"w{free[4][0].ids[5]}"
  completions = build_engine().run(PROMPTS, Sampling(10, stop=(stop, "never")))
  for before, (one,) in zip(free, completions, strict=True):
    if stop in before[0].text:
      assert one.finish_reason == "stop" and one.text == before[0].text.split(stop)[0]
      assert words(one.ids) in one.text and stop not in words(one.ids)
    else:
      assert one.ids == before[0].ids and one.finish_reason == "length"


def test_the_total_counts_the_end_token():
  free = build_engine().run(PROMPTS[:1], Sampling(4))[0][0]
  completions = build_engine(end_ids=(free.ids[2],)).run(PROMPTS[:1], Sampling(4))[0][0]
  first = free.ids.index(free.ids[2])
  assert completions.ids == free.ids[:first] and completions.finish_reason == "eos"
  assert completions.total_log_prob == pytest.approx(sum(free.log_probs[: first + 1]))


def test_the_margin_counts_the_end_token():
  """The end comes up where the choice is closest."""
  prompts = [prompt for prompt in PROMPTS if len(prompt.tokens) <= 16]
  free = [one for (one,) in build_engine().run(prompts, Sampling(4))]
  for prompt, one in zip(prompts, free, strict=True):
    margins = []
    for length in range(1, 5):
      margins.append(build_engine().run([prompt], Sampling(length))[0][0].min_margin)
    assert margins == sorted(margins, reverse=True)
    for end in set(one.ids):
      first = one.ids.index(end)
      completions = build_engine(end_ids=(end,)).run([prompt], Sampling(4))[0][0]
      assert completions.min_margin == pytest.approx(margins[first])


@pytest.mark.parametrize("rows, steps", [(1, 1), (2, 16), (64, 5)])
def test_neither_rows_nor_steps_change_a_text(rows, steps):
  sampling = Sampling(7, temperature=1.0, num_samples=3)
  completions = build_engine(rows=rows, steps=steps, end_ids=(9,)).run(PROMPTS, sampling)
  again = build_engine(end_ids=(9,)).run(PROMPTS[::-1], sampling)[::-1]
  assert [[o.ids for o in one] for one in completions] == [[o.ids for o in one] for one in again]


def test_a_small_cache_lowers_the_rows_and_changes_no_text():
  sampling = Sampling(5, temperature=1.0)
  completions = build_engine(rows=8, cache_bytes=1).run(PROMPTS[:5], sampling)
  assert [one[0].ids for one in completions] == [
    one[0].ids for one in build_engine().run(PROMPTS[:5], sampling)
  ]


class Counter:
  """The next token is the last one plus 1; counts what it is asked for."""

  name = "counter"

  def __init__(self):
    self.read, self.stepped = [], []

  def num_virtual_tokens(self, trainable, frozen):
    return 0

  def prefill(self, trainable, frozen, prompts, max_new_tokens, free_slots):
    jax.debug.callback(lambda rows: self.read.append(int(rows)), prompts["mask"].any(1).sum())
    return jax.nn.one_hot(prompts["tokens"][:, -1] + 1, 300), prompts["tokens"][:, -1]

  def decode(self, trainable, frozen, tokens, state):
    jax.debug.callback(lambda size: self.stepped.append(int(size)), len(tokens))
    return jax.nn.one_hot(tokens + 1, 300), state + 1


def test_a_prompt_is_read_once_for_all_its_samples():
  counter = Counter()
  completions = Engine(
    counter, {}, {}, functools.partial(shard_batch, mesh=None), rows=4, steps=2
  ).run([Prompt([5]), Prompt([90])], Sampling(3, temperature=1e-3, num_samples=7))
  jax.effects_barrier()
  assert sum(counter.read) == 2
  assert [one.ids for one in completions[1]] == [[91, 92, 93]] * 7


@pytest.mark.parametrize("long, read", [(20, [6]), (100, [3, 3])])
def test_prompts_of_unlike_lengths_share_rows_that_are_free(long, read):
  """Up to four times as long they are read together, too; the steps are all together."""
  counter = Counter()
  prompts = [Prompt([5] * long)] * 3 + [Prompt([5])] * 3
  completions = Engine(counter, {}, {}, functools.partial(shard_batch, mesh=None), rows=32).run(
    prompts, Sampling(4)
  )
  jax.effects_barrier()
  assert (counter.read, len(counter.stepped)) == (read, 3)
  assert [one.ids for (one,) in completions] == [[6, 7, 8, 9]] * 6


def test_many_short_prompts_do_not_share_the_cache_of_a_long_one():
  classes = {128: [0], 16: [1, 2, 3]}
  assert list(group_buckets(classes, 4)) == [classes]
  assert list(group_buckets(classes, 3)) == [{128: [0]}, {16: [1, 2, 3]}]


def test_a_long_answer_holds_up_nobody():
  """One row takes 60 tokens; the other serves the 12 short answers meanwhile."""
  counter = Counter()
  prompts = [Prompt([100])] + [Prompt([95])] * 12  # 99 + 1 ends
  order = []
  run = Engine(
    counter, {}, {}, functools.partial(shard_batch, mesh=None), end_ids=(99, 161), rows=2, steps=1
  )
  for number, _, one in run.stream(prompts, Sampling(70)):
    order.append(number)
    assert len(one.ids) == (60 if number == 0 else 3)
  jax.effects_barrier()
  assert sorted(order) == list(range(13)) and order[-1] == 0
  assert len(counter.stepped) <= 62


def test_rows_that_end_early_make_room_at_once():
  """Three rows of four end after 3 steps; nothing waits for the 16 of a look."""
  counter = Counter()
  prompts = [Prompt([100])] + [Prompt([95])] * 12  # 99 ends
  completions = Engine(
    counter, {}, {}, functools.partial(shard_batch, mesh=None), end_ids=(99,), rows=4, steps=16
  ).run(prompts, Sampling(20))
  jax.effects_barrier()
  assert [len(one.ids) for (one,) in completions] == [20] + [3] * 12
  assert len(counter.stepped) == 19


def test_nothing_is_compiled_after_the_first_prompts():
  method, sampling = SINGLE, Sampling(6, temperature=1.0)
  texts = [Prompt(np.random.default_rng(n).integers(1, 60, 1 + n % 30).tolist()) for n in range(64)]
  build_engine().run(texts, sampling)
  sizes = lambda: [
    f._cache_size() for f in (programs.prefill, programs.insert, programs.decode_steps)
  ]
  before = sizes()
  assert len(build_engine(method).run(texts[::-1] * 2, sampling)) == 128
  assert sizes() == before


def test_the_insertion_into_rows_is_compiled_once_for_a_number_of_samples():
  """The first rows are where those are that an insertion leaves."""
  programs.insert.clear_cache()
  completions = build_engine(rows=1).run([PROMPTS[0], PROMPTS[5], PROMPTS[1]], Sampling(5))
  assert len(completions) == 3 and programs.insert._cache_size() == 1


def test_nothing_to_continue():
  assert build_engine().run([], Sampling(3)) == []
