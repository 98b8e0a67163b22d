"""Questions with passages for a re-ranker: their texts as one, and the batches of their groups.

A batch takes of each group (`data/mining.py`) one positive, which stands first, and some of the
negatives; which ones is drawn anew each time. The lengths of passages differ much, so several texts
share a row (sequence packing) within each of the parts in which a batch is read.

Order, epochs, sharding by host and resume are those of `data/batches.py`: a batch is defined for
all hosts together, each takes its rows, and what is drawn depends on the number of the batch alone.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.data.mining import Group, Key
from frozen_jax.data.mixture import MixtureOptions, order
from frozen_jax.text.padding import padded, power_of_two

LENGTHS = (*range(32, 256, 16), *range(256, 513, 32))
_AHEAD = 4  # batches made ahead, in a thread
_TEXTS = 8  # P, texts in a row at most

HostBatch = dict[str, np.ndarray]  # the arrays of core.types.Pairs


class Pair(NamedTuple):
  """A question and a passage as one text: ids, token types, and whether the passage was cut."""

  tokens: Sequence[int]
  types: Sequence[int]
  cut: bool


class PairEncoder:
  """Puts a question and a passage into one text, as the encoder's tokenizer joins two texts.

  What is longer than the last of `lengths` is cut at the end of the passage, never in the question.
  """

  def __init__(self, tokenizer: Any, types: int, context: int, lengths: Sequence[int] = LENGTHS):
    """What the encoder expects.

    Args:
      tokenizer: of the encoder, a fast one.
      types: how many token types it knows (`EncoderConfig.types`).
      context: how many positions it has.
      lengths: rising; texts are padded to the first that holds them. Those beyond `context` do not
        count.

    Raises:
      UserError: there is no tokenizer, or none of the lengths can be used.
    """
    if tokenizer is None:
      raise UserError("this encoder has no tokenizer; add tokenizer.json to its folder")
    self.lengths = tuple(length for length in lengths if length <= context)
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise UserError(
        f"lengths are {tuple(lengths)}; give rising numbers up to {context}, the encoder's context"
      )
    self._tokenizer, self._lock = tokenizer, threading.Lock()  # one thread at a time, as it asks
    self._frame = _frame(tokenizer, types > 1)

  def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The texts of (question, passage) pairs; each text that occurs is tokenised once.

    Raises:
      UserError: a question that leaves no room for a passage.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    with self._lock:
      found = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    ids = dict(zip(texts, found, strict=True)) if texts else {}
    return [self._joined(question, ids[question], ids[passage]) for question, passage in pairs]

  def _joined(self, text: str, question: list[int], passage: list[int]) -> Pair:
    start, middle, end, kinds = self._frame
    room = self.lengths[-1] - len(question) - len(start) - len(middle) - len(end)
    if room < 1:
      raise UserError(
        f"the question {text[:60]!r} has {len(question)} tokens and leaves no room for a passage in"
        f" {self.lengths[-1]}; shorten it or raise the re-ranker's lengths"
      )
    kept = passage[:room]
    tokens = [*start, *question, *middle, *kept, *end]
    counts = (len(start), len(question), len(middle), len(kept), len(end))
    types = [kind for part, count in zip(kinds, counts, strict=True) for kind in _over(part, count)]
    return Pair(tokens, types, len(passage) > room)


class _Frame(NamedTuple):
  """What stands before, between and behind two texts, and the token types of all five parts."""

  start: list[int]
  middle: list[int]
  end: list[int]
  kinds: tuple[Any, ...]


def _frame(tokenizer: Any, typed: bool) -> _Frame:
  """How the tokenizer joins two texts, found by joining two."""
  ask = lambda *texts, **more: tokenizer(*texts, verbose=False, **more)
  one, two = (ask(text, add_special_tokens=False)["input_ids"] for text in ("first", "second"))
  made = ask("first", "second", return_token_type_ids=True)
  ids, kinds = list(made["input_ids"]), list(made["token_type_ids"])
  if not typed:
    kinds = [0] * len(ids)
  before = _place(one, ids, 0)
  between = before + len(one)
  second = _place(two, ids, between)
  behind = second + len(two)
  cuts = (0, before, between, second, behind, len(ids))
  parts = [kinds[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
  return _Frame(ids[:before], ids[between:second], ids[behind:], tuple(parts))


def _place(part: list[int], ids: list[int], start: int) -> int:
  """Where a part begins in the ids, from `start` on."""
  for at in range(start, len(ids) - len(part) + 1):
    if ids[at : at + len(part)] == part:
      return at
  raise UserError(
    "the encoder's tokenizer changes a text that is joined to another; a re-ranker needs one that"
    " does not"
  )


def _over(kinds: Sequence[int], count: int) -> Sequence[int]:
  """The token types of a part, for as many tokens as it has now."""
  return kinds if len(kinds) == count else [kinds[0] if kinds else 0] * count


@dataclasses.dataclass(frozen=True)
class GroupOptions:
  """How many passages stand beside a question; UserError for less than one negative.

  negatives: hard ones, drawn from the group's. in_batch: positives of other questions of the same
  batch besides.
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
    """G, all passages of a question."""
    return 1 + self.negatives + self.in_batch


class GroupBatches:
  """An endless iterator of this host's rows of the batches; its position can be taken and set.

  `counts["cut"]` says how many passages were cut, up to the last batch given out, in the batches of
  all hosts.
  """

  def __init__(
    self,
    groups: Sequence[Group],
    text_of: Callable[[Key], str],
    encoder: PairEncoder,
    batch_size: int,
    options: GroupOptions | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    units: int = 1,
  ):
    """Equal arguments give equal batches.

    Args:
      groups: of `mined_groups`. text_of: the text of a passage. encoder: joins the two.
      batch_size: questions of the batches of all hosts.
      options: see GroupOptions. seed: of the order and of what is drawn.
      shard: this host's index, and the number of hosts.
      units: U of all hosts: into how many parts devices and microbatches split a batch.

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
    self._options, self._seed = options, seed % 2**32
    self._units, own = units, units // hosts
    self._mine = slice(host * own, (host + 1) * own)
    positions = order(len(groups), None, MixtureOptions(), seed)
    made = positions.batch(batch_size, batch_fn=list).map_with_index(self._make)
    self._iterator = iter(made.to_iter_dataset(grain.ReadOptions(1, _AHEAD)))
    self.counts = {"cut": 0}

  def __iter__(self) -> Iterator[HostBatch]:
    return self

  def __next__(self) -> HostBatch:
    batch, cut = next(self._iterator)
    self.counts["cut"] += cut
    return batch

  def get_state(self) -> dict[str, Any]:
    """The position as plain JSON values."""
    order_state = self._iterator.get_state()
    return {"order": order_state, "groups": len(self._groups), "counts": dict(self.counts)}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to a position; UserError if the number of groups has changed since."""
    if state["groups"] != len(self._groups):
      raise UserError(
        f"there are {len(self._groups)} questions to train on now and there were"
        f" {state['groups']} when the run was saved; give the same, or start in another workdir"
      )
    self._iterator.set_state(dict(state["order"]))
    self.counts = dict(state["counts"])

  def _make(self, number: int, positions: Sequence[int]) -> tuple[HostBatch, int]:
    draw = np.random.default_rng((self._seed, number))
    chosen = [self._groups[int(position)] for position in positions]
    first = [group.positives[draw.integers(len(group.positives))] for group in chosen]
    rows = []
    for index, group in enumerate(chosen):
      count = min(self._options.negatives, len(group.negatives))
      picked = draw.choice(len(group.negatives), count, replace=False) if count else []
      own = [first[index], *(group.negatives[at] for at in picked)]
      rows.append((group.question, own + self._others(index, first, group, own, draw)))
    batch, cut = _packed(rows, self._text_of, self._encoder, self._options.size, self._units)
    return {name: value[self._mine] for name, value in batch.items()}, cut

  def _others(
    self, index: int, first: list[Key], group: Group, own: list[Key], draw: np.random.Generator
  ) -> list[Key]:
    """Positives of other questions of the batch that are no positives of this one."""
    if not self._options.in_batch:
      return []
    not_these = {*group.positives, *own}
    others = [
      key for key in dict.fromkeys(first[:index] + first[index + 1 :]) if key not in not_these
    ]
    count = min(self._options.in_batch, len(others))
    return [others[at] for at in draw.choice(len(others), count, replace=False)] if count else []


def validation_groups(
  groups: Sequence[Group],
  text_of: Callable[[Key], str],
  encoder: PairEncoder,
  batch_size: int,
  negatives: int = 7,
  units: int = 1,
) -> Iterator[HostBatch]:
  """Batches to score, whole on every host: of each group its first positive and hardest negatives.

  The last batch is filled up with questions without passages, which do not count. `units` as in
  GroupBatches.
  """
  for start in range(0, len(groups), batch_size):
    chosen = groups[start : start + batch_size]
    rows = [(one.question, [one.positives[0], *one.negatives[:negatives]]) for one in chosen]
    rows += [("", [])] * (batch_size - len(rows))
    yield _packed(rows, text_of, encoder, 1 + negatives, units)[0]


def _packed(
  rows: Sequence[tuple[str, Sequence[Key]]],
  text_of: Callable[[Key], str],
  encoder: PairEncoder,
  size: int,
  units: int,
) -> tuple[HostBatch, int]:
  """Questions with at most `size` passages each as the arrays of Pairs; how many were cut.

  T is the last of the encoder's lengths, and R one of few sizes.
  """
  texts = encoder([(question, text_of(key)) for question, keys in rows for key in keys])
  made, width, each = iter(texts), encoder.lengths[-1], len(rows) // units
  places, filled = np.full((len(rows), size), -1, np.int32), []
  for start in range(0, len(rows), each):
    owners = [
      (question, passage)
      for question in range(start, start + each)
      for passage in range(len(rows[question][1]))
    ]
    own = [next(made) for _ in owners]
    shared = shared_rows([len(text.tokens) for text in own], width, _TEXTS)
    for row, together in enumerate(shared):
      for place, at in enumerate(together):
        places[owners[at]] = row * _TEXTS + place
    filled.append([[own[at] for at in together] for together in shared])
  least = max(map(len, filled))
  step = max(power_of_two(least) // 8, 1)
  count = -(-max(least, 1) // step) * step
  parts = [_in_rows(shared, width, count) for shared in filled]
  batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
  batch["places"] = places.reshape(units, each, size)
  return batch, sum(text.cut for text in texts)


def shared_rows(lengths: Sequence[int], width: int, most: int) -> list[list[int]]:
  """Which texts share a row of that width, at most so many: first fit, the longest first."""
  rows: list[list[int]] = []
  room: list[int] = []
  for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
    for row, left in enumerate(room):
      if lengths[at] <= left and len(rows[row]) < most:
        break
    else:
      row = len(rows)
      rows.append([])
      room.append(width)
    rows[row].append(at)
    room[row] -= lengths[at]
  return rows


def _in_rows(rows: Sequence[Sequence[Pair]], width: int, count: int) -> HostBatch:
  """Texts that share rows as arrays `tokens` and `types` [count, T] and `mask` [count, P, T]."""
  joined = lambda name: [[i for text in row for i in getattr(text, name)] for row in rows]
  tokens, _ = padded(joined("tokens"), width, count)
  types, _ = padded(joined("types"), width, count)
  mask = np.zeros((count, _TEXTS, width), np.int32)
  for row, together in enumerate(rows):
    ends = np.cumsum([0, *(len(text.tokens) for text in together)])
    for place, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
      mask[row, place, start:end] = 1
  return {"tokens": tokens, "types": types, "mask": mask}


def pad_pairs(texts: Sequence[Pair], lengths: Sequence[int], size: int | None = None) -> HostBatch:
  """Texts as arrays `tokens` and `types` [N, T] and `mask` [N, 1, T], int32: a row for each.

  T is the first of `lengths` that holds the longest; N is `size` (default: as many as texts).
  """
  longest = max(len(text.tokens) for text in texts)
  width = next(length for length in lengths if length >= longest)
  tokens, mask = padded([text.tokens for text in texts], width, size)
  types, _ = padded([text.types for text in texts], width, size)
  return {"tokens": tokens, "types": types, "mask": mask[:, None]}
