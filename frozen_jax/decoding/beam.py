"""Beam search: the W likeliest complete continuations of each prompt; for short answers.

The score of a continuation is the sum of its tokens' log-probabilities, the end token's included,
without a length penalty. So it only falls while a continuation grows, and the search for a prompt
may end, with nothing lost, as soon as its best unfinished continuation is no better than its W-th
finished one. At each step the W best unfinished extensions are kept; those of the W best of all
that end are finished. transformers' `generate(num_beams=W, length_penalty=0.0,
early_stopping="never")` searches the same way.

Prompts of one width are searched together, as one compiled program with the prefill. Like the
engine it is independent of the model: every array of a method's state has the rows on its first
axis, and here a row is a beam.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.core.types import Prompt
from frozen_jax.decoding.engine import Engine, ProgressCallback
from frozen_jax.decoding.prompts import left_padded_arrays, length_buckets
from frozen_jax.decoding.requests import Completion
from frozen_jax.sharding.batch import with_sharding_constraint
from frozen_jax.text.padding import power_of_two


class Beams(NamedTuple):
  """Continuations of B prompts, W of each, the best first.

  scores     float32 [B, W]       -inf: no such continuation
  tokens     int32 [B, W, new]    -1 after the last
  log_probs  float32 [B, W, new]  of each token
  """

  scores: Float[Array, "B W"]
  tokens: Int[Array, "B W new"]
  log_probs: Float[Array, "B W new"]


def search(
  engine: Engine,
  prompts: Sequence[Prompt],
  num_beams: int,
  max_new_tokens: int,
  report: ProgressCallback = lambda count: None,
) -> list[list[Completion]]:
  """The `num_beams` best continuations of each prompt, the best first.

  At most `engine.rows` beams together, or those of one prompt. There are fewer continuations where
  a small vocabulary has no more. `report` is called with how many more prompts are finished.
  """
  completions: list[list[Completion]] = [[] for _ in prompts]
  for width, numbers in sorted(length_buckets(prompts).items(), reverse=True):
    max_rows = _max_rows(engine, prompts[numbers[0]], width, num_beams, max_new_tokens)
    size = min(max_rows, power_of_two(len(numbers)))
    for start in range(0, len(numbers), max_rows):
      chunk = numbers[start : start + max_rows]
      arrays = left_padded_arrays([prompts[number] for number in chunk], width, size)
      beams = _search(
        engine.method,
        engine.trainable,
        engine.frozen_trees,
        engine.shard_batch(arrays),
        np.asarray(engine.end_ids, np.int32),
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        out_sharding=engine.replicated,
      )
      for number, *row in zip(chunk, *jax.tree.map(np.asarray, beams), strict=False):
        completions[number] = _completions(engine, *row)
      report(len(chunk))
  return completions


def _max_rows(
  engine: Engine, prompt: Prompt, width: int, num_beams: int, max_new_tokens: int
) -> int:
  """How many prompts are searched together: a power of two whose beams fit rows and memory."""
  prefill = lambda batch: engine.method.prefill(
    engine.trainable, engine.frozen, batch, max_new_tokens, max_new_tokens
  )
  _, state = jax.eval_shape(prefill, left_padded_arrays([prompt], width, 1))
  beam_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  beams = min(engine.rows, engine.cache_bytes * engine.row_groups // beam_bytes)
  return 1 << (max(beams // num_beams, 1).bit_length() - 1)


def _completions(
  engine: Engine, scores: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray
) -> list[Completion]:
  """The beams of one prompt: scores [W], tokens and their log-probabilities [W, new]."""
  completions = []
  for score, row, row_log_probs in zip(
    scores.tolist(), tokens.tolist(), log_probs.tolist(), strict=True
  ):
    if score == -np.inf:
      break
    ids = [token for token in row if token >= 0]
    reason = "eos" if ids[-1] in engine.end_ids else "length"
    ids = ids[:-1] if reason == "eos" else ids
    text = "" if engine.decode is None else engine.decode(ids)
    completions.append(Completion(ids, row_log_probs[: len(ids)], reason, text, score, np.nan))
  return completions


@functools.partial(
  jax.jit, static_argnames=("method", "num_beams", "max_new_tokens", "out_sharding")
)
def _search(
  method, trainable, frozen_trees, batch, end_ids, *, num_beams, max_new_tokens, out_sharding
) -> Beams:
  """The best continuations of each row of a batch of prompts; of an empty row, none."""
  frozen, decode_frozen = frozen_trees
  logits, state = method.prefill(trainable, frozen, batch, max_new_tokens, max_new_tokens)
  rows = len(logits)
  # Before the first token all beams of a prompt are one.
  source = jnp.repeat(jnp.arange(rows), num_beams)
  state, logits = jax.tree.map(lambda a: jnp.take(a, source, axis=0), (state, logits))
  is_first = (batch["mask"] > 0).any(axis=1)[:, None] & (jnp.arange(num_beams) == 0)
  zeros = jnp.zeros((rows, num_beams, max_new_tokens), jnp.float32)
  none = Beams(jnp.full(is_first.shape, -jnp.inf), jnp.full(zeros.shape, -1, jnp.int32), zeros)
  live = none._replace(scores=jnp.where(is_first, 0.0, -jnp.inf))

  def unfinished(carry):
    length, live, finished, _, _ = carry
    return (length < max_new_tokens) & (live.scores[:, 0] > finished.scores[:, -1]).any()

  def step(carry):
    length, live, finished, source, state = carry
    state = jax.tree.map(lambda a: jnp.take(a, source, axis=0), state)
    tokens = jax.lax.dynamic_index_in_dim(live.tokens, length - 1, axis=2, keepdims=False)
    logits, state = method.decode(trainable, decode_frozen, tokens.reshape(-1), state)
    return length + 1, *_extend(live, finished, logits, length, end_ids), state

  carry = (jnp.int32(1), *_extend(live, none, logits, 0, end_ids), state)
  _, _, finished, _, _ = jax.lax.while_loop(unfinished, step, carry)
  return jax.tree.map(lambda a: with_sharding_constraint(a, out_sharding), finished)


def _extend(live, finished, logits, position, end_ids) -> tuple[Beams, Beams, Array]:
  """The live beams with a token more, the best finished ones, and the rows that the former extend.

  logits: [B * W, V], of the token at this position. The rows count through all beams of all
  prompts.
  """
  rows, num_beams = live.scores.shape
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, num_beams, -1)
  # This many are enough: of the extensions of one beam at most the end tokens do not stay live.
  count = num_beams * (1 + len(end_ids))
  log_probs, tokens = jax.lax.top_k(log_probs, min(count, log_probs.shape[-1]))  # [B, W, count]
  totals = live.scores[..., None] + log_probs
  scores, index = jax.lax.top_k(
    totals.reshape(rows, -1), min(count, num_beams * totals.shape[-1])
  )  # [B, count]
  beam = index // totals.shape[-1]
  take = lambda a: jnp.take_along_axis(a.reshape(rows, -1), index, axis=1)
  tokens = take(tokens)
  extended = _take_beams(live, beam)
  extended = Beams(
    scores,
    extended.tokens.at[:, :, position].set(tokens),
    extended.log_probs.at[:, :, position].set(take(log_probs)),
  )
  ends = jnp.isin(tokens, end_ids) | (position == live.tokens.shape[-1] - 1)
  in_top = jnp.arange(scores.shape[1]) < num_beams
  newly_finished = _mask_beams(extended, ends & in_top)
  finished = jax.tree.map(lambda *both: jnp.concatenate(both, axis=1), finished, newly_finished)
  _, best_finished = jax.lax.top_k(finished.scores, num_beams)
  live = _mask_beams(extended, ~ends)
  _, best_live = jax.lax.top_k(live.scores, num_beams)
  source = jnp.arange(rows)[:, None] * num_beams + jnp.take_along_axis(beam, best_live, axis=1)
  return _take_beams(live, best_live), _take_beams(finished, best_finished), source.reshape(-1)


def _mask_beams(beams: Beams, keep: Bool[Array, "B count"]) -> Beams:
  """The beams with the scores of all but those to keep at -inf."""
  return beams._replace(scores=jnp.where(keep, beams.scores, -jnp.inf))


def _take_beams(beams: Beams, index: Int[Array, "B count"]) -> Beams:
  """Some beams of each prompt."""

  def take(a: Any) -> Array:
    return jnp.take_along_axis(a, index.reshape(*index.shape, *(1,) * (a.ndim - 2)), axis=1)

  return jax.tree.map(take, beams)
