"""Extensibility: whether a skill answers as before, bit by bit, once another was added (METHODS 5).

`outputs` is taken of skill one as soon as it is trained, and again, of what then serves skill one,
after skill two was trained; `compare` puts the two side by side.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from frozen_jax.core.types import Method, Prompt, Prompts, Tree
from frozen_jax.decoding.prompts import left_padded
from frozen_jax.decoding.requests import Sampling
from frozen_jax.evaluation.generation import Answerer, generate_ids
from frozen_jax.sharding.place import constrained, everywhere, make_place


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a skill gave on its prompts.

  logits: SHA-256 of every bit of the next token's logits behind each prompt (float32 [V], in the
  order of the batches). ids: of each prompt's greedy continuation. scores: the skill's figures.
  """

  logits: str
  ids: tuple[tuple[int, ...], ...]
  scores: Mapping[str, float]


def outputs(
  method: Method,
  trained: Tree,
  frozen: Tree,
  lm: Answerer,
  prompts: Sequence[Prompt],
  new: int,
  batch_size: int = 32,
  scores: Mapping[str, float] | None = None,
) -> Outputs:
  """What a skill gives on prompts now, `new` tokens each at most.

  Raises UserError for a prompt that leaves no room in the model's context.
  """
  ids = generate_ids(method, trained, frozen, lm, prompts, Sampling(new), batch_size)
  place, whole = make_place(lm.mesh), everywhere(lm.mesh)
  digest = hashlib.sha256()
  for rows, batch in left_padded(prompts, batch_size):
    logits = _next_logits(method, trained, frozen, place(batch), whole)
    digest.update(np.asarray(logits)[: len(rows)].tobytes())
  return Outputs(digest.hexdigest(), tuple(map(tuple, ids)), dict(scores or {}))


def compare(before: Outputs, after: Outputs) -> dict[str, Any]:
  """What another skill has done to this one, JSON-ready.

  identical: all logits bit by bit and all continuations are what they were. changed: how many of
  the continuations are not, of `prompts`. before, after: the skill's figures. Raises ValueError for
  outputs on another number of prompts.
  """
  changed = sum(old != new for old, new in zip(before.ids, after.ids, strict=True))
  return {
    "identical": before.logits == after.logits and not changed,
    "changed": changed,
    "prompts": len(before.ids),
    "logits_before": before.logits,
    "logits_after": after.logits,
    "before": dict(before.scores),
    "after": dict(after.scores),
  }


@functools.partial(jax.jit, static_argnames=("method", "out_sharding"))
def _next_logits(
  method: Method, trained: Tree, frozen: Tree, prompts: Prompts, out_sharding: Any
) -> jax.Array:
  logits, _ = method.prefill(trained, frozen, prompts, 0, 0)
  return constrained(logits, out_sharding)
