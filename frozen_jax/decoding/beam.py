"""Beam search: the K likeliest whole continuations of each prompt; for short answers.

The score of a continuation is the sum of its tokens' log-probabilities, the end token's included,
without a length penalty. So it only falls while a continuation grows, and the search for a prompt
may end, with nothing lost, as soon as its best unfinished continuation is no better than its K-th
finished one. At each step the K best extensions that go on are kept; those of the K best of all
that end are finished. transformers' `generate(num_beams=K, length_penalty=0.0,
early_stopping="never")` searches the same way.

Prompts of one width are searched together, as one compiled program with the prefill. Like the
engine it knows nothing of models: every array of a method's state has the rows on its first axis,
and here a row is a beam.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.core.types import Prompt
from frozen_jax.decoding.engine import Engine, Report
from frozen_jax.decoding.prompts import size_class
from frozen_jax.decoding.requests import Continuation
from frozen_jax.sharding.place import constrained
from frozen_jax.text.padding import beside, padded, power_of_two


class Beams(NamedTuple):
  """Continuations of R prompts, the best of each first; N tokens at most (K: their number here).

  scores     float32 [R, K]     -inf: there is none
  tokens     int32 [R, K, N]    -1 behind the last
  log_probs  float32 [R, K, N]  of each token
  """

  scores: Float[Array, "R K"]
  tokens: Int[Array, "R K N"]
  log_probs: Float[Array, "R K N"]


def search(
  engine: Engine,
  prompts: Sequence[Prompt],
  num_beams: int,
  max_new_tokens: int,
  report: Report = lambda count: None,
) -> list[list[Continuation]]:
  """The `num_beams` best continuations of each prompt, the best first.

  At most `engine.rows` beams at once, or those of one prompt. There are fewer continuations where a
  small vocabulary has no more. `report` is told how many prompts are finished.
  """
  found: list[list[Continuation]] = [[] for _ in prompts]
  classes: dict[int, list[int]] = collections.defaultdict(list)
  for number, prompt in enumerate(prompts):
    classes[size_class(len(prompt.tokens))].append(number)
  for width, numbers in sorted(classes.items(), reverse=True):
    most = _at_once(engine, prompts[numbers[0]], width, num_beams, max_new_tokens)
    for start in range(0, len(numbers), most):
      chosen = numbers[start : start + most]
      these = [prompts[number] for number in chosen]
      best = _search(
        engine.method,
        engine.trainable,
        engine.trees,
        engine.place(_arrays(these, width, min(most, power_of_two(len(numbers))))),
        num_beams=num_beams,
        new=max_new_tokens,
        end_ids=engine.end_ids,
        out_sharding=engine.whole,
      )
      for number, *row in zip(chosen, *jax.tree.map(np.asarray, best), strict=False):
        found[number] = _continuations(engine, *row)
      report(len(chosen))
  return found


def _arrays(prompts: Sequence[Prompt], width: int, size: int) -> dict[str, np.ndarray]:
  tokens, mask = padded([one.tokens for one in prompts], width, size, left=True)
  return {"tokens": tokens, "mask": mask, **beside(prompts, size)}


def _at_once(engine: Engine, prompt: Prompt, width: int, num_beams: int, new: int) -> int:
  """How many prompts are searched together: a power of two whose beams fit rows and memory."""
  read = lambda batch: engine.method.prefill(engine.trainable, engine.frozen, batch, new, new)
  _, state = jax.eval_shape(read, _arrays([prompt], width, 1))
  beam_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  beams = min(engine.rows, engine.cache_bytes // beam_bytes)
  return 1 << (max(beams // num_beams, 1).bit_length() - 1)


def _continuations(
  engine: Engine, scores: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray
) -> list[Continuation]:
  """What was found for one prompt: scores [K], tokens and their log-probabilities [K, N]."""
  made = []
  for score, row, likely in zip(scores.tolist(), tokens.tolist(), log_probs.tolist(), strict=True):
    if score == -np.inf:
      break
    ids = [token for token in row if token >= 0]
    ended = "end" if ids[-1] in engine.end_ids else "length"
    ids = ids[:-1] if ended == "end" else ids
    text = "" if engine.decode is None else engine.decode(ids)
    made.append(Continuation(ids, likely[: len(ids)], ended, text, score, np.nan))
  return made


@functools.partial(
  jax.jit, static_argnames=("method", "num_beams", "new", "end_ids", "out_sharding")
)
def _search(method, trainable, frozen, batch, *, num_beams, new, end_ids, out_sharding) -> Beams:
  """The best continuations of each row of a batch of prompts; of an empty row, nothing."""
  whole, stepped = frozen
  logits, state = method.prefill(trainable, whole, batch, new, new)
  rows, ends = len(logits), jnp.asarray(end_ids, jnp.int32)
  # Before the first token all beams of a prompt are one.
  source = jnp.repeat(jnp.arange(rows), num_beams)
  state, logits = jax.tree.map(lambda a: jnp.take(a, source, axis=0), (state, logits))
  one = (batch["mask"] > 0).any(axis=1)[:, None] & (jnp.arange(num_beams) == 0)
  zeros = jnp.zeros((rows, num_beams, new), jnp.float32)
  nothing = Beams(jnp.full(one.shape, -jnp.inf), jnp.full(zeros.shape, -1, jnp.int32), zeros)
  live = nothing._replace(scores=jnp.where(one, 0.0, -jnp.inf))

  def more(carry):
    place, live, done, _, _ = carry
    return (place < new) & (live.scores[:, 0] > done.scores[:, -1]).any()

  def step(carry):
    place, live, done, source, state = carry
    state = jax.tree.map(lambda a: jnp.take(a, source, axis=0), state)
    tokens = jax.lax.dynamic_index_in_dim(live.tokens, place - 1, axis=2, keepdims=False)
    logits, state = method.decode(trainable, stepped, tokens.reshape(-1), state)
    return place + 1, *_extended(live, done, logits, place, ends), state

  carry = (jnp.int32(1), *_extended(live, nothing, logits, 0, ends), state)
  _, _, done, _, _ = jax.lax.while_loop(more, step, carry)
  return jax.tree.map(lambda a: constrained(a, out_sharding), done)


def _extended(live, done, logits, place, ends) -> tuple[Beams, Beams, Array]:
  """The beams with a token more, the best that are finished, and the rows that the former extend.

  logits: [R * K, V], of the token at this place. The rows count through all beams of all prompts.
  """
  rows, beams = live.scores.shape
  likely = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, beams, -1)
  # So many are enough: of those of one beam no more than the end tokens do not go on.
  count = beams * (1 + len(ends))
  likely, tokens = jax.lax.top_k(likely, min(count, likely.shape[-1]))  # [R, K, M]
  totals = live.scores[..., None] + likely
  scores, which = jax.lax.top_k(
    totals.reshape(rows, -1), min(count, beams * totals.shape[-1])
  )  # [R, n]
  beam = which // totals.shape[-1]
  taken = lambda a: jnp.take_along_axis(a.reshape(rows, -1), which, axis=1)
  tokens = taken(tokens)
  longer = _chosen(live, beam)
  longer = Beams(
    scores,
    longer.tokens.at[:, :, place].set(tokens),
    longer.log_probs.at[:, :, place].set(taken(likely)),
  )
  ended = jnp.isin(tokens, ends) | (place == live.tokens.shape[-1] - 1)
  among = jnp.arange(scores.shape[1]) < beams
  finished = _scored(longer, ended & among)
  done = jax.tree.map(lambda *both: jnp.concatenate(both, axis=1), done, finished)
  _, order = jax.lax.top_k(done.scores, beams)
  live = _scored(longer, ~ended)
  _, on = jax.lax.top_k(live.scores, beams)
  source = jnp.arange(rows)[:, None] * beams + jnp.take_along_axis(beam, on, axis=1)
  return _chosen(live, on), _chosen(done, order), source.reshape(-1)


def _scored(beams: Beams, there: Bool[Array, "R n"]) -> Beams:
  """The beams, of which some are there."""
  return beams._replace(scores=jnp.where(there, beams.scores, -jnp.inf))


def _chosen(beams: Beams, which: Int[Array, "R n"]) -> Beams:
  """Some beams of each prompt."""

  def take(a: Any) -> Array:
    return jnp.take_along_axis(a, which.reshape(*which.shape, *(1,) * (a.ndim - 2)), axis=1)

  return jax.tree.map(take, beams)
