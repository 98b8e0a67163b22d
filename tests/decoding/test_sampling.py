"""Sampling tokens: frequencies, top-k, top-p, what rounding may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.decoding import sampling

pytestmark = pytest.mark.program

V = 700  # not a multiple of the search's block


def options(rows, temperature=1.0, top_k=0, top_p=1.0):
  return sampling.SamplingOptions(
    jnp.full(rows, temperature), jnp.full(rows, top_k), jnp.full(rows, top_p)
  )


def sample(logits, numbers, how, sampled=True, truncated=True):
  run = jax.jit(sampling.sample, static_argnames=("sampled", "truncated"))
  return jax.tree.map(np.asarray, run(logits, numbers, how, sampled=sampled, truncated=truncated))


@pytest.fixture(scope="module")
def logits():
  return 3 * jax.random.normal(jax.random.key(0), (V,))


def expected_set(logits, temperature, top_k, top_p):
  """The probabilities of the tokens that are left, by sorting."""
  p = np.asarray(jax.nn.softmax(logits.astype(jnp.float32) / temperature), np.float64)
  order = np.argsort(-p, kind="stable")
  kept = np.zeros(len(p), bool)
  kept[order[: top_k or len(p)]] = True
  p = np.where(kept, p, 0) / p[kept].sum()
  reached = np.cumsum(p[order])
  count = int((reached < top_p).sum()) + 1
  kept[order[count:]] = False
  return np.where(kept, p, 0) / p[kept].sum()


@pytest.mark.parametrize(
  "temperature, top_k, top_p",
  [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.6), (1.0, 1, 1.0)],
)
def test_frequencies_are_those_of_the_softmax(logits, temperature, top_k, top_p):
  """Evenly spaced numbers give each token as often as its probability says, but for the ends."""
  rows = 4000
  numbers = (jnp.arange(rows) + 0.5) / rows
  how = options(rows, temperature, top_k, top_p)
  tokens, *_ = sample(jnp.broadcast_to(logits, (rows, V)), numbers, how)
  p = expected_set(logits, temperature, top_k, top_p)
  seen = np.bincount(tokens, minlength=V)
  assert not seen[p == 0].any(), "a token was sampled that is left out"
  assert np.abs(seen - rows * p).max() < 1.1


def test_greedy_rows_alongside_sampled_ones(logits):
  both = jnp.stack([logits, logits])
  how = sampling.SamplingOptions(jnp.asarray([0.0, 1.0]), jnp.zeros(2, jnp.int32), jnp.ones(2))
  tokens, log_probs, _ = sample(both, jnp.asarray([0.99, 0.99]), how)
  assert tokens[0] == int(logits.argmax()) and tokens[1] != tokens[0]
  np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits)[tokens], rtol=1e-5, atol=1e-5)
  alone, *_ = sample(both, jnp.asarray([0.99, 0.99]), how, sampled=False, truncated=False)
  assert alone.tolist() == [tokens[0]] * 2


def test_greedy_takes_the_first_of_equal_logits(logits):
  rows = jnp.stack([jnp.zeros(V), -logits, logits.at[jnp.array([9, 300])].set(50.0)])
  rows = rows.at[1, :4].set(-jnp.inf)
  tokens, *_ = sample(rows, jnp.zeros(3), options(3, 0.0), sampled=False, truncated=False)
  assert tokens.tolist() == np.argmax(rows, axis=-1).tolist() and tokens.tolist()[::2] == [0, 9]


def test_margins_are_those_of_sorting(logits):
  rows = jnp.stack([logits, -logits, jnp.zeros(V), logits.at[5].set(50.0)])
  sampled = sample(rows, jnp.zeros(4), options(4, 0.0), sampled=False, truncated=False)
  likely = np.sort(np.asarray(jax.nn.log_softmax(rows)), axis=-1)
  np.testing.assert_allclose(sampled.margins, likely[:, -1] - likely[:, -2], atol=1e-5)
  assert sampled.margins[2] == 0
  assert np.isnan(sample(rows, jnp.zeros(4), options(4, 0.0)).margins).all()


def test_a_vocabulary_of_one_has_no_other_token():
  sampled = sample(jnp.zeros((2, 1)), jnp.zeros(2), options(2, 0.0), sampled=False, truncated=False)
  assert np.isposinf(sampled.margins).all() and (sampled.log_probs == 0).all()


def test_ties_with_the_last_stay():
  logits = jnp.asarray([[2.0, 1.0, 1.0, -1.0, 0.0]])
  numbers = jnp.linspace(0, 0.999, 50)
  tokens, *_ = sample(jnp.tile(logits, (50, 1)), numbers, options(50, top_k=2))
  assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("number", [0.0, np.nextafter(1, 0, dtype=np.float32)])
def test_the_ends_of_the_range_take_tokens_with_weight(number):
  logits = jnp.full((1, V), -jnp.inf).at[0, [3, 650]].set(0.0)
  tokens, *_ = sample(logits, jnp.asarray([number], jnp.float32), options(1), truncated=False)
  assert tokens[0] == (3 if number == 0 else 650)


def test_random_numbers_depend_on_seed_sample_and_position():
  ask = lambda *values: float(
    sampling.uniforms(*(jnp.asarray([v], t) for v, t in zip(values, "Iii", strict=True)))[0]
  )
  base = ask(7, 0, 0)
  assert base == ask(7, 0, 0)
  assert len({base, ask(8, 0, 0), ask(7, 1, 0), ask(7, 0, 1)}) == 4
  assert 0 <= base < 1
