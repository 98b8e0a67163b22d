"""Question-passage pairs for a re-ranker (cross-encoder), packed into batches.

A batch has for each question (`data/mining.Group`) one positive passage, which comes first, and
some of its negatives, sampled anew each time. Passages differ much in length, so several texts are
packed into a row (sequence packing), within each of the units into which a batch is split.

Order, epochs, sharding by host and resume are those of `data/batches.py`: a batch is defined for
all hosts together, each takes its units, and the random choices depend only on the batch's number.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.seeds import seed32
from frozen_jax.core.types import HostBatch
from frozen_jax.data.batches import PREFETCH
from frozen_jax.data.distinct_rows import DistinctRows
from frozen_jax.data.mining import Group, PassageKey
from frozen_jax.data.mixture import shuffled_order
from frozen_jax.data.pair_encoder import Pair, PairEncoder
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.text.padding import pad_sequences, power_of_two

_TEXTS_PER_ROW = 8  # at most


@dataclasses.dataclass(frozen=True)
class GroupOptions:
  """How many negatives a question has; UserError for none.

  negatives: hard negatives, sampled from the group's. in_batch: in addition, positives of other
  questions of the same batch.
  """

  negatives: int = 7
  in_batch: int = 0

  def __post_init__(self) -> None:
    if min(self.negatives, self.in_batch) < 0 or not self.size > 1:
      raise UserError(
        f"{self.negatives} hard and {self.in_batch} in-batch negatives were asked for; give at"
        " least one of either"
      )

  @property
  def size(self) -> int:
    """G, the number of passages of a question."""
    return 1 + self.negatives + self.in_batch


class GroupBatches:
  """An endless iterator of this host's units of the batches; its position can be saved.

  `counts["truncated"]` is the number of truncated passages, each once, up to the last batch
  returned, of all hosts.
  """

  def __init__(
    self,
    groups: Sequence[Group],
    text_of: Callable[[PassageKey], str],
    encoder: PairEncoder,
    batch_size: int,
    options: GroupOptions | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    units: int = 1,
  ):
    """Equal arguments give equal batches.

    Args:
      groups: of `mine_groups`. text_of: the text of a passage. encoder: joins the two.
      batch_size: questions of the batches of all hosts.
      options: see GroupOptions. seed: of the order and of the sampled passages.
      shard: this host's index, and the number of hosts.
      units: U over all hosts: into how many parts devices and microbatches split a batch.

    Raises:
      UserError: no groups, a batch that cannot be split, fewer questions in it than in-batch
        negatives need.
    """
    (host, hosts), units = shard, max(units, shard[1])
    options = options or GroupOptions()
    if not groups:
      raise UserError("there are no questions to train the re-ranker on; give some")
    if batch_size < 1 or batch_size % units or units % hosts:
      raise UserError(
        f"a batch of {batch_size} questions cannot be split evenly over devices and microbatches,"
        f" {units} in all; choose a multiple"
      )
    if options.in_batch >= batch_size:
      raise UserError(
        f"{options.in_batch} in-batch negatives need more than {batch_size} questions in a batch"
      )
    self._groups, self._text_of, self._encoder = groups, text_of, encoder
    self._options, self._seed = options, seed32(seed)
    self._units, per_host = units, units // hosts
    self._host_units = slice(host * per_host, (host + 1) * per_host)
    indices = shuffled_order(len(groups), None, MixtureSettings(), seed)
    batches = indices.batch(batch_size, batch_fn=list).map_with_index(self._draw_batch)
    self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(1, PREFETCH)))
    self._distinct = DistinctRows("truncated")

  @property
  def counts(self) -> dict[str, int]:
    """How many passages were truncated."""
    return self._distinct.counts

  def __iter__(self) -> Iterator[HostBatch]:
    return self

  def __next__(self) -> HostBatch:
    batch, truncated = next(self._iterator)
    self._distinct.add({"truncated": truncated})
    return batch

  def get_state(self) -> dict[str, Any]:
    """The position as plain JSON values."""
    position = self._iterator.get_state()
    return {
      "order": position,
      "groups": len(self._groups),
      "counts": self.counts,
      "seen": self._distinct.get_state(),
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Restores a position; UserError if the number of groups has changed since."""
    if state["groups"] != len(self._groups):
      raise UserError(
        f"there are {len(self._groups)} questions to train on now and there were"
        f" {state['groups']} when the run was saved; give the same, or start in another workdir"
      )
    self._iterator.set_state(dict(state["order"]))
    self._distinct.set_state(state.get("seen", {}))

  def _draw_batch(self, number: int, indices: Sequence[int]) -> tuple[HostBatch, list[PassageKey]]:
    rng = np.random.default_rng((self._seed, number))
    chosen = [self._groups[int(index)] for index in indices]
    positives = [group.positives[rng.integers(len(group.positives))] for group in chosen]
    rows = []
    for row, group in enumerate(chosen):
      count = min(self._options.negatives, len(group.negatives))
      sampled = rng.choice(len(group.negatives), count, replace=False) if count else []
      passages = [positives[row], *(group.negatives[index] for index in sampled)]
      passages += self._in_batch_negatives(row, positives, group, passages, rng)
      rows.append((group.question, passages))
    size, units = self._options.size, self._units
    batch, truncated = _pack_questions(rows, self._text_of, self._encoder, size, units)
    return {name: value[self._host_units] for name, value in batch.items()}, truncated

  def _in_batch_negatives(
    self,
    row: int,
    positives: list[PassageKey],
    group: Group,
    passages: list[PassageKey],
    rng: np.random.Generator,
  ) -> list[PassageKey]:
    """Positives of other questions of the batch that are no passages of this one."""
    if not self._options.in_batch:
      return []
    excluded = {*group.positives, *passages}
    others = positives[:row] + positives[row + 1 :]
    candidates = [key for key in dict.fromkeys(others) if key not in excluded]
    count = min(self._options.in_batch, len(candidates))
    sampled = rng.choice(len(candidates), count, replace=False) if count else []
    return [candidates[index] for index in sampled]


def validation_batches(
  groups: Sequence[Group],
  text_of: Callable[[PassageKey], str],
  encoder: PairEncoder,
  batch_size: int,
  negatives: int = 7,
  units: int = 1,
) -> Iterator[HostBatch]:
  """Batches to score, the same on every host: each question's first positive, hardest negatives.

  The last batch is filled up with questions without passages, which do not count. `units` as in
  GroupBatches.
  """
  for start in range(0, len(groups), batch_size):
    chosen = groups[start : start + batch_size]
    rows = [(one.question, [one.positives[0], *one.negatives[:negatives]]) for one in chosen]
    rows += [("", [])] * (batch_size - len(rows))
    yield _pack_questions(rows, text_of, encoder, 1 + negatives, units)[0]


def _pack_questions(
  rows: Sequence[tuple[str, Sequence[PassageKey]]],
  text_of: Callable[[PassageKey], str],
  encoder: PairEncoder,
  size: int,
  units: int,
) -> tuple[HostBatch, list[PassageKey]]:
  """Questions with at most `size` passages each as the arrays of Pairs; those truncated.

  T is the last of the encoder's lengths, and R is rounded up to one of few sizes.
  """
  texts = encoder([(question, text_of(key)) for question, keys in rows for key in keys])
  remaining, width, per_unit = iter(texts), encoder.lengths[-1], len(rows) // units
  text_index = np.full((len(rows), size), -1, np.int32)
  packed: list[list[list[Pair]]] = []  # of each unit, its rows of texts
  for start in range(0, len(rows), per_unit):
    owners = [
      (question, passage)
      for question in range(start, start + per_unit)
      for passage in range(len(rows[question][1]))
    ]
    unit_texts = [next(remaining) for _ in owners]
    packing = pack_texts([len(text.tokens) for text in unit_texts], width, _TEXTS_PER_ROW)
    for row, members in enumerate(packing):
      for slot, member in enumerate(members):
        text_index[owners[member]] = row * _TEXTS_PER_ROW + slot
    packed.append([[unit_texts[member] for member in members] for members in packing])
  max_rows = max(map(len, packed))
  step = max(power_of_two(max_rows) // 8, 1)
  count = -(-max(max_rows, 1) // step) * step
  parts = [_packed_arrays(unit_rows, width, count) for unit_rows in packed]
  batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
  batch["text_index"] = text_index.reshape(units, per_unit, size)
  every = [key for _, keys in rows for key in keys]
  return batch, [key for key, text in zip(every, texts, strict=True) if text.truncated]


def pack_texts(lengths: Sequence[int], width: int, max_texts: int) -> list[list[int]]:
  """Packs texts of these lengths into rows of `width` tokens: first fit decreasing.

  Returns for each row the indices of its texts, at most `max_texts`.
  """
  rows: list[list[int]] = []
  free: list[int] = []
  for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
    for row, tokens in enumerate(free):
      if lengths[index] <= tokens and len(rows[row]) < max_texts:
        break
    else:
      row = len(rows)
      rows.append([])
      free.append(width)
    rows[row].append(index)
    free[row] -= lengths[index]
  return rows


def _packed_arrays(rows: Sequence[Sequence[Pair]], width: int, count: int) -> HostBatch:
  """Rows of texts as arrays `tokens` and `types` [count, T] and `mask` [count, texts, T]."""
  joined = lambda name: [[i for text in row for i in getattr(text, name)] for row in rows]
  tokens, _ = pad_sequences(joined("tokens"), width, count)
  types, _ = pad_sequences(joined("types"), width, count)
  mask = np.zeros((count, _TEXTS_PER_ROW, width), np.int32)
  for row, texts in enumerate(rows):
    ends = np.cumsum([0, *(len(text.tokens) for text in texts)])
    for slot, (start, end) in enumerate(itertools.pairwise(ends)):
      mask[row, slot, start:end] = 1
  return {"tokens": tokens, "types": types, "mask": mask}
