"""Extensibility: whether a skill answers as before, bit by bit, once another was added.

`outputs` records skill one when it is trained, and again, with what then serves skill one, after
skill two was trained; `compare_outputs` compares the two. See docs/paper.md, 5.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from frozen_jax.core.types import Method, Prompt, Tree
from frozen_jax.decoding.prompts import left_padded
from frozen_jax.decoding.requests import Sampling
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.batch import shard_batch, with_sharding_constraint
from frozen_jax.sharding.rules import replicated


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a skill gave on its prompts.

  logits_sha256: of every bit of the next token's logits after each prompt (float32 [V], in the
  order of the batches). ids: of each prompt's greedy completion. scores: of the skill.
  """

  logits_sha256: str
  ids: tuple[tuple[int, ...], ...]
  scores: Mapping[str, float]


def outputs(
  model: TunedModel, prompts: Sequence[Prompt], scores: Mapping[str, float] | None = None
) -> Outputs:
  """What a skill gives on prompts, by the `max_new_tokens` and `batch_size` of `model.generation`.

  scores: kept with the outputs. Raises UserError for a prompt that leaves no room in the model's
  context.
  """
  settings, mesh = model.generation, model.lm.mesh
  completions = model.complete(prompts, Sampling(settings.max_new_tokens))
  digest = hashlib.sha256()
  for rows, batch in left_padded(prompts, settings.batch_size):
    logits = _next_logits(
      model.method,
      model.trained,
      model.frozen,
      shard_batch(batch, mesh),
      out_sharding=replicated(mesh),
    )
    digest.update(np.asarray(logits)[: len(rows)].tobytes())
  ids = tuple(tuple(greedy.ids) for (greedy,) in completions)
  return Outputs(digest.hexdigest(), ids, dict(scores or {}))


def compare_outputs(before: Outputs, after: Outputs) -> dict[str, Any]:
  """What another skill has changed of this one, JSON-ready.

  identical: whether all logits, bit by bit, and all completions are the same. changed: how many of
  the completions differ, of `prompts`. before, after: the skill's scores. Raises ValueError for
  outputs on another number of prompts.
  """
  changed = sum(old != new for old, new in zip(before.ids, after.ids, strict=True))
  return {
    "identical": before.logits_sha256 == after.logits_sha256 and not changed,
    "changed": changed,
    "prompts": len(before.ids),
    "logits_before": before.logits_sha256,
    "logits_after": after.logits_sha256,
    "before": dict(before.scores),
    "after": dict(after.scores),
  }


@functools.partial(jax.jit, static_argnames=("method", "out_sharding"))
def _next_logits(
  method: Method,
  trained: Tree,
  frozen: Tree,
  prompts: Any,
  out_sharding: jax.sharding.Sharding | None,
) -> Float[Array, "B V"]:
  logits, _ = method.prefill(trained, frozen, prompts, 0, 0)
  return with_sharding_constraint(logits, out_sharding)
