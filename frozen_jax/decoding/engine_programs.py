"""The compiled programs of the decoding engine: prefill, rows put into the batch, steps.

The state of decoding is a tree of arrays with the rows on the first axis, as a method's `prefill`
gives it. Its arrays keep their shardings from program to program (`shardings`, in the order of the
leaves); what every host reads is replicated (`out_sharding`).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, Shaped, UInt

from frozen_jax.core.types import AutoregressiveModel, Prompts, Tree
from frozen_jax.decoding import sampling
from frozen_jax.sharding.batch import with_sharding_constraint

Shardings = Sequence[Any]  # of the leaves of a state, in their order
Scalar = int | jax.Array | np.ndarray | np.generic


class RowState(NamedTuple):
  """The state of each row of the batch.

  token     int32 [B]   the newest, not yet read by the model
  count     int32 [B]   how many have been generated
  limit     int32 [B]   how many may be; a row whose count has reached it is free
  seed      uint32 [B]  of the row's prompt
  sample    int32 [B]   which of the prompt's samples it is
  """

  token: Int[Array | np.ndarray, "B"]
  count: Int[Array | np.ndarray, "B"]
  limit: Int[Array | np.ndarray, "B"]
  seed: UInt[Array | np.ndarray, "B"]
  sample: Int[Array | np.ndarray, "B"]


@functools.partial(jax.jit, static_argnames=("method", "free_slots"))
def prefill(
  method: AutoregressiveModel,
  trainable: Tree,
  frozen: Tree,
  batch: Prompts,
  max_new_tokens: int | Int[Array | np.ndarray, "*B"],
  *,
  free_slots: int,
) -> tuple[Float[Array, "B V"], Tree]:
  """A method's `prefill`: the next token's logits of each prompt, and the state."""
  return method.prefill(trainable, frozen, batch, max_new_tokens, free_slots)


@functools.partial(jax.jit, static_argnames=("size", "shardings", "out_sharding"))
def empty(
  state: Tree, *, size: int, shardings: Shardings, out_sharding: Sharding | None
) -> tuple[Tree, RowState]:
  """A state of `size` rows like those of this one, and the rows, all free.

  Both are on the devices as `insert` leaves them: it would else be compiled twice.
  """
  zeros = jnp.zeros(size, jnp.int32)
  rows = RowState(zeros, zeros, zeros, zeros.astype(jnp.uint32), zeros)
  empty = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), state)
  return _split(empty, shardings), _replicate(rows, out_sharding)


@functools.partial(
  jax.jit,
  static_argnames=("sampled", "truncated", "shardings", "out_sharding"),
  donate_argnums=(0, 1),
)
def insert(
  state: Tree,
  row_state: RowState,
  prefilled: tuple[jax.Array, Tree],
  where: tuple[jax.Array | np.ndarray, ...],
  options: Tree,
  limit: jax.Array | np.ndarray,
  end_ids: Int[Array | np.ndarray, "ends"],
  *,
  sampled: bool,
  truncated: bool,
  shardings: Shardings,
  out_sharding: Sharding | None,
) -> tuple[Tree, RowState, sampling.SampledTokens]:
  """Rows of a prefill's state put into the batch, and their first tokens."""
  (logits, prefill_state), (source, rows, seeds, samples) = prefilled, where
  zeros = jnp.zeros_like(source)
  uniforms = sampling.uniforms(seeds, samples, zeros)
  tokens = sampling.sample(
    jnp.take(logits, source, axis=0), uniforms, options, sampled=sampled, truncated=truncated
  )
  insert = functools.partial(_insert_rows, source=source, rows=rows)
  state = jax.tree.map(insert, state, prefill_state)
  ended = jnp.isin(tokens.tokens, end_ids)
  new = RowState(tokens.tokens, zeros + 1, jnp.where(ended, 1, limit), seeds, samples)
  row_state = jax.tree.map(lambda a, values: a.at[rows].set(values, mode="drop"), row_state, new)
  return _split(state, shardings), *_replicate((row_state, tokens), out_sharding)


def _insert_rows(
  state: Shaped[Array, "B *rest"],
  prefill_state: Shaped[Array, "prompts *rest"],
  source: Int[Array | np.ndarray, "samples"],
  rows: Int[Array | np.ndarray, "samples"],
) -> Shaped[Array, "B *rest"]:
  """An array of the state in which `rows` are those of `source` of a prefill's.

  Selected row by row: a scatter takes ten times as long on a CPU, and more in bfloat16.
  """
  index = jnp.full(len(state), -1).at[rows].set(source, mode="drop")
  is_new = (index >= 0).reshape(-1, *(1,) * (state.ndim - 1))
  return jnp.where(is_new, jnp.take(prefill_state, index, axis=0), state)


def _split(state: Tree, shardings: Shardings) -> Tree:
  """The state with the shardings of its arrays, in the order of its leaves."""
  leaves, treedef = jax.tree.flatten(state)
  split = map(with_sharding_constraint, leaves, shardings)
  return jax.tree.unflatten(treedef, split)


def _replicate(tree: Tree, sharding: Sharding | None) -> Any:
  """The tree with a sharding that every host can read."""
  return jax.tree.map(lambda a: with_sharding_constraint(a, sharding), tree)


@functools.partial(
  jax.jit,
  static_argnames=("method", "steps", "sampled", "truncated", "shardings", "out_sharding"),
  donate_argnums=(3, 4),
)
def decode_steps(
  method: AutoregressiveModel,
  trainable: Tree,
  frozen: Tree,
  state: Tree,
  rows: RowState,
  options: Tree,
  min_live: Scalar,
  end_ids: Int[Array | np.ndarray, "ends"],
  *,
  steps: int,
  sampled: bool,
  truncated: bool,
  shardings: Shardings,
  out_sharding: Sharding | None,
) -> tuple[Tree, RowState, sampling.SampledTokens]:
  """Up to `steps` more tokens of each row: `sampling.SampledTokens` of [B, steps]; -1: no token.

  After the first token it ends when no more than `min_live` rows are unfinished.
  """

  def unfinished(carry):
    index, _, rows, _ = carry
    live = (rows.count < rows.limit).sum()
    return (index < steps) & (live > jnp.where(index > 0, min_live, 0))

  def step(carry):
    index, state, rows, output = carry
    logits, state = method.decode(trainable, frozen, rows.token, state)
    uniforms = sampling.uniforms(rows.seed, rows.sample, rows.count)
    new = sampling.sample(logits, uniforms, options, sampled=sampled, truncated=truncated)
    live = rows.count < rows.limit
    new = new._replace(tokens=jnp.where(live, new.tokens, -1))
    output = jax.tree.map(lambda a, values: a.at[:, index].set(values), output, new)
    count = rows.count + live
    limit = jnp.where(live & jnp.isin(new.tokens, end_ids), count, rows.limit)
    token = jnp.where(live, new.tokens, rows.token)
    return index + 1, state, rows._replace(token=token, count=count, limit=limit), output

  size = len(rows.token)
  zeros = jnp.zeros((size, steps), jnp.float32)
  output = sampling.SampledTokens(jnp.full((size, steps), -1, jnp.int32), zeros, zeros)
  _, state, rows, output = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state, rows, output))
  return _split(state, shardings), *_replicate((rows, output), out_sharding)
