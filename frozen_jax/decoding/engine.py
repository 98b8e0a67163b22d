"""The decoding engine: continues any number of prompts, a fixed number of rows at once.

    queue of prompts ──prefill──> waiting (read, not yet placed) ──> rows ──steps──> finished
                                        n samples of one prefill      ^ as soon as one is free

Each prompt is read once, however many samples are drawn of it. A row that has ended makes room for
the next sample at once (continuous batching), so one long answer holds up nobody. What is compiled:
a prefill for each length class of prompts, the placing, and the steps; nothing after that.

Knows nothing of models: `prefill` and `decode` are a method's predict functions (`core.types`), and
every array of the state between them has the rows on its first axis.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.core.device import memory_bytes, suited
from frozen_jax.core.types import Method, Prompt, Tree
from frozen_jax.decoding import drawing
from frozen_jax.decoding.prompts import size_class
from frozen_jax.decoding.requests import Continuation, Sampling, seed_of
from frozen_jax.decoding.writing import Writing
from frozen_jax.sharding.place import constrained
from frozen_jax.text.padding import beside, few_sizes, padded, power_of_two

ROWS = {"cpu": 128, "gpu": 1024}
STEPS = 16  # tokens a row, at most, between two looks at what has ended
_KEPT = 0.75  # where samples wait, we look as soon as only this share of the rows is written on
_CACHES = 4  # one part in so many of the devices' memory is for keys and values
_READ_AT_ONCE = {"cpu": 2**11, "gpu": 2**13}  # tokens of prompts
_READERS = 4  # and prompts at once: one in so many of the rows, as each brings a cache of its own
_ALIKE = 4  # prompts over so many times as long as others are read, and written on, apart
_SLOTS = 32  # a cache's length is a multiple of it

Report = Callable[[int], Any]


class Rows(NamedTuple):
  """Where each row of the batch stands; R is their number.

  token     int32 [R]   the newest, not yet read by the model
  count     int32 [R]   how many have been generated
  limit     int32 [R]   how many may be; a row whose count has come to it is free
  seed      uint32 [R]  of the row's prompt
  sample    int32 [R]   which of the prompt's samples it is
  """

  token: Int[Array, "R"]
  count: Int[Array, "R"]
  limit: Int[Array, "R"]
  seed: Array
  sample: Int[Array, "R"]


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
  """Continues prompts by one method with its trees.

  place: puts host arrays on the mesh. whole: the sharding of what every host reads. rows: at most
  so many continuations at once. cache_bytes: of their keys and values, on all devices together.
  end_ids, decode: the end tokens, and ids -> text (None without a tokenizer; then there are no stop
  texts). stepped: the frozen tree as single steps read it, None: as it is.
  """

  method: Method
  trainable: Tree
  frozen: Tree
  place: Callable[[Any], Any]
  whole: jax.sharding.Sharding | None = None
  end_ids: tuple[int, ...] = ()
  decode: Callable[[Sequence[int]], str] | None = None
  rows: int = dataclasses.field(default_factory=lambda: suited(ROWS))
  steps: int = STEPS
  cache_bytes: int = dataclasses.field(default_factory=lambda: memory_bytes() // _CACHES)
  stepped: Tree = None

  @property
  def trees(self) -> tuple[Tree, Tree]:
    """The frozen tree as prefills read it, and as single steps do."""
    return self.frozen, self.frozen if self.stepped is None else self.stepped

  def run(
    self, prompts: Sequence[Prompt], sampling: Sampling, report: Report = lambda count: None
  ) -> list[list[Continuation]]:
    """The continuations of each prompt; `report` is told how many prompts are finished."""
    found: list[list[Any]] = [[None] * sampling.num_samples for _ in prompts]
    left = [sampling.num_samples] * len(prompts)
    for number, sample, continuation in self.stream(prompts, sampling):
      found[number][sample] = continuation
      left[number] -= 1
      if not left[number]:
        report(1)
    return found

  def stream(
    self, prompts: Sequence[Prompt], sampling: Sampling
  ) -> Iterator[tuple[int, int, Continuation]]:
    """(number of the prompt, number of its sample, continuation), as they are finished."""
    classes: dict[int, list[int]] = collections.defaultdict(list)
    for number, prompt in enumerate(prompts):
      classes[size_class(len(prompt.tokens))].append(number)
    enough = -(-self.rows // sampling.num_samples)
    for group in _alike(classes, enough):
      yield from _Batch(self, prompts, group, sampling).stream()


class _Batch:
  """The rows of one cache, from the first prompt to the last of its `classes`."""

  def __init__(
    self,
    engine: Engine,
    prompts: Sequence[Prompt],
    classes: dict[int, list[int]],
    sampling: Sampling,
  ):
    self.engine, self.prompts, self.sampling = engine, prompts, sampling
    self.queue = [(width, number) for width in classes for number in classes[width]]
    taken = engine.method.taken(engine.trainable, engine.frozen)
    needed = max(classes) + taken + sampling.max_new_tokens
    self.slots = -(-needed // _SLOTS) * _SLOTS
    self.taken = taken
    self.waiting: collections.deque[_Waiting] = collections.deque()
    self.state: Tree = None
    self.size = 0
    self.at: Rows
    self.writings: list[Writing | None] = []

  def stream(self) -> Iterator[tuple[int, int, Continuation]]:
    while self.queue or self.waiting or any(self.writings):
      self._fill()
      yield from self._finished()
      if any(self.writings):
        self._advance()
        yield from self._finished()

  def _fill(self) -> None:
    """Places what waits on the free rows; reads more prompts where nothing waits."""
    while True:
      free = [row for row, writing in enumerate(self.writings) if writing is None]
      if self.state is not None and not free:
        return
      if not self.waiting:
        if not self.queue:
          return
        self._read()
        continue
      self._place(self.waiting.popleft(), free)

  def _read(self) -> None:
    """Prefills the next prompts, the longest first, padded to the width of the first.

    They fill the batch, whatever their widths, and what is left at the end is read in a batch of
    that size too: so there is one size for each width, but for prompts that are few altogether.
    """
    engine, width = self.engine, self.queue[0][0]
    most = min(suited(_READ_AT_ONCE) // width, engine.rows // _READERS)
    most = power_of_two(max(most, 1) // 2 + 1)
    chosen = [number for w, number in self.queue[:most] if _ALIKE * w >= width]
    self.queue = self.queue[len(chosen) :]
    these = [self.prompts[number] for number in chosen]
    size = most if self.state is not None else few_sizes(len(these), most)
    tokens, mask = padded([one.tokens for one in these], width, size, left=True)
    batch = engine.place({"tokens": tokens, "mask": mask, **beside(these, size)})
    room = self.slots - width - self.taken
    logits, state = _prefill(
      engine.method,
      engine.trainable,
      engine.frozen,
      batch,
      np.int32(self.sampling.max_new_tokens),
      room=room,
    )
    if self.state is None:
      self._start(state)
    seeds = [seed_of(self.sampling, one) for one in these]
    samples = [
      (row, number, seeds[row], sample)
      for row, number in enumerate(chosen)
      for sample in range(self.sampling.num_samples)
    ]
    self.waiting.append(_Waiting(logits, state, collections.deque(samples)))

  def _start(self, state: Tree) -> None:
    """An empty batch of rows for states like this one."""
    engine, leaves = self.engine, jax.tree.leaves(state)
    row_bytes = sum(leaf.nbytes // len(leaf) for leaf in leaves)
    total = len(self.queue) * self.sampling.num_samples + len(leaves[0]) * self.sampling.num_samples
    fitting = max(engine.cache_bytes // row_bytes, 1)
    self.size = min(engine.rows, power_of_two(total), 1 << (fitting.bit_length() - 1))
    self.state = _empty(state, size=self.size)
    zeros = np.zeros(self.size, np.int32)
    self.at = Rows(zeros, zeros, zeros, zeros.astype(np.uint32), zeros)
    self.writings = [None] * self.size

  def _place(self, waiting: "_Waiting", free: list[int]) -> None:
    """Puts samples of a prefill on free rows and draws their first tokens."""
    engine, count = self.engine, min(len(free), len(waiting.samples))
    placed = [waiting.samples.popleft() for _ in range(count)]
    size = few_sizes(count, self.size)
    # Rows beyond the last one are dropped.
    rows = np.full(size, self.size, np.int32)
    rows[:count] = free[:count]
    source, seeds, samples = np.zeros(size, np.int32), np.zeros(size, np.uint32), rows * 0
    for index, (row, _, seed, sample) in enumerate(placed):
      source[index], seeds[index], samples[index] = row, seed, sample
    self.state, self.at, drawn = _insert(
      self.state,
      self.at,
      (waiting.logits, waiting.state),
      (source, rows, seeds, samples),
      self._options(size),
      np.int32(self.sampling.max_new_tokens),
      end_ids=engine.end_ids,
      **self._kinds(),
      out_sharding=engine.whole,
    )
    news = zip(*(np.asarray(each).tolist() for each in drawn), strict=True)
    for row, (_, number, _, sample), new in zip(free, placed, news, strict=False):
      writing = Writing(number, sample, self.sampling, engine.end_ids, engine.decode)
      writing.add(*([each] for each in new))
      self.writings[row] = writing
    if waiting.samples:
      self.waiting.appendleft(waiting)

  def _advance(self) -> None:
    """Some more tokens for every row, fewer where many rows end that others wait for."""
    engine, (_, frozen) = self.engine, self.engine.trees
    kept = int(_KEPT * self.size) if self.queue or self.waiting else 0
    self.state, self.at, drawn = _steps(
      engine.method,
      engine.trainable,
      frozen,
      self.state,
      self.at,
      self._options(self.size),
      np.int32(kept),
      steps=engine.steps,
      end_ids=engine.end_ids,
      **self._kinds(),
      out_sharding=engine.whole,
    )
    news = zip(*(np.asarray(each).tolist() for each in drawn), strict=True)
    for writing, new in zip(self.writings, news, strict=True):
      if writing is not None:
        writing.add(*new)

  def _finished(self) -> Iterator[tuple[int, int, Continuation]]:
    stopped = []
    for row, writing in enumerate(self.writings):
      if writing is not None and writing.ended:
        self.writings[row] = None
        if writing.ended == "stop":
          stopped.append(row)
        yield writing.number, writing.sample, writing.continuation()
    if stopped:  # the device does not know of stop texts
      limit = np.asarray(self.at.limit).copy()
      limit[stopped] = 0
      self.at = self.at._replace(limit=limit)

  def _options(self, size: int) -> drawing.Options:
    every = lambda value, dtype: np.full(size, value, dtype)
    sampling = self.sampling
    return drawing.Options(
      every(sampling.temperature, np.float32),
      every(sampling.top_k, np.int32),
      every(sampling.top_p, np.float32),
    )

  def _kinds(self) -> dict[str, bool]:
    return {"sampled": self.sampling.temperature > 0, "cut": self.sampling.cut}


class _Waiting(NamedTuple):
  """Prompts that were read: (row of the state, number of the prompt, seed, sample) of each sample
  that is not placed yet."""

  logits: Float[Array, "b V"]
  state: Tree
  samples: collections.deque[tuple[int, int, int, int]]


def _alike(classes: dict[int, list[int]], enough: int) -> Iterator[dict[int, list[int]]]:
  """The classes, longest first, in groups that need like caches.

  None is over `_ALIKE` times as long as another, unless they are `enough` prompts at most, which
  apart would leave rows free: many short ones do not pay for a few long ones' cache.
  """
  group: dict[int, list[int]] = {}
  for width in sorted(classes, reverse=True):
    count = sum(map(len, group.values())) + len(classes[width])
    if group and _ALIKE * width < next(iter(group)) and count > enough:
      yield group
      group = {}
    group[width] = classes[width]
  if group:
    yield group


@functools.partial(jax.jit, static_argnames=("method", "room"))
def _prefill(method, trainable, frozen, batch, new, *, room):
  return method.prefill(trainable, frozen, batch, new, room)


@functools.partial(jax.jit, static_argnames="size")
def _empty(state, *, size):
  return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), state)


@functools.partial(
  jax.jit, static_argnames=("end_ids", "sampled", "cut", "out_sharding"), donate_argnums=(0, 1)
)
def _insert(state, at, read, where, options, limit, *, end_ids, sampled, cut, out_sharding):
  """Rows of a prefill's state put into the batch, and their first tokens."""
  (logits, prefix), (source, rows, seeds, samples) = read, where
  zeros = jnp.zeros_like(source)
  numbers = drawing.numbers(seeds, samples, zeros)
  drawn = drawing.draw(jnp.take(logits, source, axis=0), numbers, options, sampled=sampled, cut=cut)
  state = jax.tree.map(functools.partial(_placed, source=source, rows=rows), state, prefix)
  ended = jnp.isin(drawn.tokens, jnp.asarray(end_ids, jnp.int32))
  new = Rows(drawn.tokens, zeros + 1, jnp.where(ended, 1, limit), seeds, samples)
  at = jax.tree.map(lambda whole, part: whole.at[rows].set(part, mode="drop"), at, new)
  return state, *_everywhere((at, drawn), out_sharding)


def _placed(whole, part, source, rows):
  """An array of the state with some rows of a prefill's in place of its own.

  Chosen row by row: a scatter takes ten times as long on a CPU, and more in bfloat16.
  """
  which = jnp.full(len(whole), -1).at[rows].set(source, mode="drop")
  new = (which >= 0).reshape(-1, *(1,) * (whole.ndim - 1))
  return jnp.where(new, jnp.take(part, which, axis=0), whole)


def _everywhere(tree, sharding):
  """What the host reads."""
  return jax.tree.map(lambda each: constrained(each, sharding), tree)


@functools.partial(
  jax.jit,
  static_argnames=("method", "steps", "end_ids", "sampled", "cut", "out_sharding"),
  donate_argnums=(3, 4),
)
def _steps(
  method, trainable, frozen, state, at, options, kept, *, steps, end_ids, sampled, cut, out_sharding
):
  """Up to `steps` more tokens of each row: `drawing.Drawn` of [R, steps], token -1: none.

  Behind the first token it ends when no more than `kept` rows are left.
  """
  ends = jnp.asarray(end_ids, jnp.int32)

  def more(carry):
    index, _, at, _ = carry
    left = (at.count < at.limit).sum()
    return (index < steps) & (left > jnp.where(index > 0, kept, 0))

  def one(carry):
    index, state, at, written = carry
    logits, state = method.decode(trainable, frozen, at.token, state)
    numbers = drawing.numbers(at.seed, at.sample, at.count)
    drawn = drawing.draw(logits, numbers, options, sampled=sampled, cut=cut)
    live = at.count < at.limit
    drawn = drawn._replace(tokens=jnp.where(live, drawn.tokens, -1))
    written = jax.tree.map(lambda whole, new: whole.at[:, index].set(new), written, drawn)
    count = at.count + live
    limit = jnp.where(live & jnp.isin(drawn.tokens, ends), count, at.limit)
    at = at._replace(token=jnp.where(live, drawn.tokens, at.token), count=count, limit=limit)
    return index + 1, state, at, written

  rows = len(at.token)
  zeros = jnp.zeros((rows, steps), jnp.float32)
  nothing = drawing.Drawn(jnp.full((rows, steps), -1, jnp.int32), zeros, zeros)
  carry = (jnp.int32(0), state, at, nothing)
  _, state, at, written = jax.lax.while_loop(more, one, carry)
  return state, *_everywhere((at, written), out_sharding)
