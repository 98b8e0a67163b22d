"""The decoding engine: continuous batching of any number of prompts over a fixed number of rows.

    queue of prompts ──prefill──> prefilled, not yet in a row ──> rows ──steps──> finished
                                     n samples of one prefill      ^ as soon as one is free

Each prompt is read once, however many samples are drawn of it. The row of a finished sample takes
the next one at once, so one long answer holds up no other. Compiled are a prefill for each length
bucket of prompts, the insertion into rows, and the steps; nothing after that.

It is independent of the model: `prefill` and `decode` are a method's predict functions
(`core.types`), and every array of the state between them has the rows on its first axis.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from frozen_jax.core.device import memory_bytes, per_backend
from frozen_jax.core.types import AutoregressiveModel, Prompt, Tree
from frozen_jax.decoding import engine_programs, sampling
from frozen_jax.decoding.engine_programs import RowState
from frozen_jax.decoding.prompts import (
  MAX_LENGTH_RATIO,
  group_buckets,
  left_padded_arrays,
  length_buckets,
)
from frozen_jax.decoding.requests import Completion, Sampling, seed_of
from frozen_jax.decoding.sequence import SequenceState
from frozen_jax.sharding.batch import rows_sharding
from frozen_jax.text.padding import batch_bucket, power_of_two

MAX_ROWS = {"cpu": 128, "gpu": 1024, "tpu": 256}  # of one row group
DECODE_STEPS = 16  # the most tokens a row between two checks for finished rows
_MIN_LIVE_SHARE = 0.75  # with samples waiting, steps end once no more than this share is unfinished
_CACHE_SHARE = 4  # one part in this many of a device's memory is for keys and values
_PREFILL_TOKENS = {
  "cpu": 2**11,
  "gpu": 2**13,
  "tpu": 2**13,
}  # of a row group's prompts in a prefill
_PREFILL_SHARE = 4  # and prompts: one in this many of the rows, as each brings a cache
_FEW_PROMPTS = 8
_SLOTS = 32  # a cache's length is a multiple of it

ProgressCallback = Callable[[int], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
  """Continues prompts by one method with its trees.

  shard_batch    puts host arrays on the mesh
  replicated     the sharding of arrays that every host reads; None without a mesh
  end_ids        the end tokens
  decode         ids -> text; None without a tokenizer, then there are no stop texts
  row_groups     into how many parts the mesh splits the rows
  rows           the most sequences in a batch
  steps          the most tokens a row between two checks for finished rows
  cache_bytes    the most for their keys and values on one device
  decode_frozen  the frozen tree in the form for single steps; None: the same one
  """

  method: AutoregressiveModel
  trainable: Tree
  frozen: Tree
  shard_batch: Callable[[Any], Any]
  replicated: jax.sharding.Sharding | None = None
  end_ids: tuple[int, ...] = ()
  decode: Callable[[Sequence[int]], str] | None = None
  row_groups: int = 1
  rows: int = dataclasses.field(default_factory=lambda: per_backend(MAX_ROWS))
  steps: int = DECODE_STEPS
  cache_bytes: int = dataclasses.field(default_factory=lambda: memory_bytes() // _CACHE_SHARE)
  decode_frozen: Tree = None

  @property
  def frozen_trees(self) -> tuple[Tree, Tree]:
    """The frozen tree for prefills, and the one for single steps."""
    return self.frozen, self.frozen if self.decode_frozen is None else self.decode_frozen

  def run(
    self,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    report: ProgressCallback = lambda count: None,
  ) -> list[list[Completion]]:
    """The completions of each prompt; `report` is called with how many more are finished."""
    completions: list[list[Any]] = [[None] * sampling.num_samples for _ in prompts]
    unfinished = [sampling.num_samples] * len(prompts)
    for number, sample, completion in self.stream(prompts, sampling):
      completions[number][sample] = completion
      unfinished[number] -= 1
      if not unfinished[number]:
        report(1)
    return completions

  def stream(
    self, prompts: Sequence[Prompt], sampling: Sampling
  ) -> Iterator[tuple[int, int, Completion]]:
    """(number of the prompt, number of its sample, completion), as they are finished."""
    prompts_for_all_rows = -(-self.rows // sampling.num_samples)
    for group in group_buckets(length_buckets(prompts), prompts_for_all_rows):
      yield from _Batch(self, prompts, group, sampling).stream()


class _Batch:
  """The rows of one cache, from the first prompt of its `buckets` to the last."""

  def __init__(
    self,
    engine: Engine,
    prompts: Sequence[Prompt],
    buckets: dict[int, list[int]],
    sampling: Sampling,
  ):
    self.engine, self.prompts, self.sampling = engine, prompts, sampling
    self.queue = [(width, number) for width in buckets for number in buckets[width]]
    num_virtual_tokens = engine.method.num_virtual_tokens(engine.trainable, engine.frozen)
    needed = max(buckets) + num_virtual_tokens + sampling.max_new_tokens
    self.slots = -(-needed // _SLOTS) * _SLOTS
    self.num_virtual_tokens = num_virtual_tokens
    self.prefilled: collections.deque[_Prefilled] = collections.deque()
    self.state: Tree = None
    self.shardings: tuple[jax.sharding.Sharding | None, ...] = ()  # of its arrays
    self.size = 0
    self.rows: RowState
    self.sequences: list[SequenceState | None] = []

  def stream(self) -> Iterator[tuple[int, int, Completion]]:
    while self.queue or self.prefilled or any(self.sequences):
      self._fill_rows()
      yield from self._finished()
      if any(self.sequences):
        self._decode_steps()
        yield from self._finished()

  def _fill_rows(self) -> None:
    """Puts prefilled samples into the free rows; reads more prompts where there are none."""
    while True:
      free = [row for row, sequence in enumerate(self.sequences) if sequence is None]
      if self.state is not None and not free:
        return
      if not self.prefilled:
        if not self.queue:
          return
        self._prefill()
        continue
      self._insert(self.prefilled.popleft(), free)

  def _prefill(self) -> None:
    """Reads the next prompts, the longest first, padded to the width of the first.

    They fill the prefill batch, whatever their widths, and the rest at the end is read in a batch
    of that size too: so there is one size for each width, except for few prompts in all, which are
    read together.
    """
    engine, width = self.engine, self.queue[0][0]
    max_tokens = per_backend(_PREFILL_TOKENS) * engine.row_groups
    few = self.state is None and len(self.queue) <= min(engine.rows, _FEW_PROMPTS)
    share = power_of_two(len(self.queue)) if few else engine.rows // _PREFILL_SHARE
    max_prompts = min(max_tokens // width, share)
    max_prompts = max(power_of_two(max(max_prompts, 1) // 2 + 1), engine.row_groups)
    numbers = [n for w, n in self.queue[:max_prompts] if MAX_LENGTH_RATIO * w >= width]
    self.queue = self.queue[len(numbers) :]
    prompts = [self.prompts[number] for number in numbers]
    size = max_prompts if self.state is not None else batch_bucket(len(prompts), max_prompts)
    size = -(-size // engine.row_groups) * engine.row_groups
    logits, state = engine_programs.prefill(
      engine.method,
      engine.trainable,
      engine.frozen,
      engine.shard_batch(left_padded_arrays(prompts, width, size)),
      np.int32(self.sampling.max_new_tokens),
      free_slots=self.slots - width - self.num_virtual_tokens,
    )
    if self.state is None:
      self._allocate(state)
    seeds = [seed_of(self.sampling, prompt) for prompt in prompts]
    samples = [
      (row, number, seeds[row], sample)
      for row, number in enumerate(numbers)
      for sample in range(self.sampling.num_samples)
    ]
    self.prefilled.append(_Prefilled(logits, state, collections.deque(samples)))

  def _allocate(self, state: Tree) -> None:
    """An empty batch of rows for states like this one."""
    engine, leaves = self.engine, jax.tree.leaves(state)
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in leaves]
    row_bytes = sum(math.prod(shape[1:]) * itemsize for shape, itemsize in shards)
    total = len(self.queue) * self.sampling.num_samples + len(leaves[0]) * self.sampling.num_samples
    fitting = max(engine.cache_bytes // row_bytes, 1)
    fitting = (1 << (fitting.bit_length() - 1)) * engine.row_groups
    wanted = -(-power_of_two(total) // engine.row_groups) * engine.row_groups
    self.size = min(engine.rows, wanted, fitting)
    self.shardings = tuple(rows_sharding(leaf.sharding, self.size) for leaf in leaves)
    self.state, self.rows = engine_programs.empty(
      state, size=self.size, shardings=self.shardings, out_sharding=engine.replicated
    )
    self.sequences = [None] * self.size

  def _insert(self, prefilled: "_Prefilled", free: list[int]) -> None:
    """Puts samples of a prefill into free rows and samples their first tokens."""
    engine, count = self.engine, min(len(free), len(prefilled.samples))
    inserted = [prefilled.samples.popleft() for _ in range(count)]
    size = batch_bucket(count, self.size)
    # Rows beyond the last one are dropped.
    rows = np.full(size, self.size, np.int32)
    rows[:count] = free[:count]
    source, seeds, samples = np.zeros(size, np.int32), np.zeros(size, np.uint32), rows * 0
    for index, (row, _, seed, sample) in enumerate(inserted):
      source[index], seeds[index], samples[index] = row, seed, sample
    self.state, self.rows, tokens = engine_programs.insert(
      self.state,
      self.rows,
      (prefilled.logits, prefilled.state),
      (source, rows, seeds, samples),
      self._options(size),
      np.int32(self.sampling.max_new_tokens),
      np.asarray(engine.end_ids, np.int32),
      shardings=self.shardings,
      **self._static_options(),
      out_sharding=engine.replicated,
    )
    new_tokens = zip(*(np.asarray(a).tolist() for a in tokens), strict=True)
    for row, (_, number, _, sample), new in zip(free, inserted, new_tokens, strict=False):
      sequence = SequenceState(number, sample, self.sampling, engine.end_ids, engine.decode)
      sequence.add(*([value] for value in new))
      self.sequences[row] = sequence
    if prefilled.samples:
      self.prefilled.appendleft(prefilled)

  def _decode_steps(self) -> None:
    """Some more tokens for every row, fewer where many rows end and samples wait for them."""
    engine, (_, frozen) = self.engine, self.engine.frozen_trees
    min_live = int(_MIN_LIVE_SHARE * self.size) if self.queue or self.prefilled else 0
    self.state, self.rows, tokens = engine_programs.decode_steps(
      engine.method,
      engine.trainable,
      frozen,
      self.state,
      self.rows,
      self._options(self.size),
      np.int32(min_live),
      np.asarray(engine.end_ids, np.int32),
      steps=engine.steps,
      shardings=self.shardings,
      **self._static_options(),
      out_sharding=engine.replicated,
    )
    new_tokens = zip(*(np.asarray(a).tolist() for a in tokens), strict=True)
    for sequence, new in zip(self.sequences, new_tokens, strict=True):
      if sequence is not None:
        sequence.add(*new)

  def _finished(self) -> Iterator[tuple[int, int, Completion]]:
    """The finished sequences, whose rows become free."""
    stopped = []
    for row, sequence in enumerate(self.sequences):
      if sequence is not None and sequence.finish_reason:
        self.sequences[row] = None
        if sequence.finish_reason == "stop":
          stopped.append(row)
        yield sequence.number, sequence.sample, sequence.completion()
    if stopped:  # the device does not see stop texts
      limit = np.asarray(self.rows.limit).copy()
      limit[stopped] = 0
      self.rows = self.rows._replace(limit=limit)

  def _options(self, size: int) -> sampling.SamplingOptions:
    request = self.sampling
    return sampling.SamplingOptions(
      np.full(size, request.temperature, np.float32),
      np.full(size, request.top_k, np.int32),
      np.full(size, request.top_p, np.float32),
    )

  def _static_options(self) -> dict[str, bool]:
    return {"sampled": self.sampling.temperature > 0, "truncated": self.sampling.truncated}


class _Prefilled(NamedTuple):
  """Prompts that were read, with their samples that are not in a row yet.

  Of each sample: (row of the state, number of the prompt, seed, number of the sample).
  """

  logits: Float[Array, "prompts V"]
  state: Tree
  samples: collections.deque[tuple[int, int, int, int]]
