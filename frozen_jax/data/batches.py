"""From encoded examples to padded batches: order, epochs, sharding by host and exact resume.

`data/mixture.py` gives the order: endless epochs of all examples, each shuffled anew, or a mixture
of data sets. A batch is defined for all hosts together, and each host takes its rows, so any number
of hosts trains on the same batches.

Shapes. A program is compiled for each pair of shapes [B, T], [B, M] that occurs, so there are few:
T is the smallest of the task's `lengths` that holds the batch's longest row, M a power of two (at
least 4, for scoring 16) that holds the largest number of targets, and never below what half of all
batches need. Where padding is left out M costs next to nothing, and is such that few need more.
Both depend on the rows of all hosts, which need equal shapes; so each host tokenises the whole
batch.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar
from frozen_jax.core.types import ROW_INDEX, HostBatch
from frozen_jax.data.collate import collate, num_targets, padded_lengths, targets_bucket
from frozen_jax.data.distinct_rows import DistinctRows
from frozen_jax.data.examples import Example
from frozen_jax.data.mixture import shuffled_order, stratified_sample
from frozen_jax.data.rows import Rows
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.data.sources import Source
from frozen_jax.data.tasks import Encoded, LanguageModelTask, QuestionTask, Task
from frozen_jax.data.unpadding import Unpadding

_MIN_SCORED = 16  # so that sources of short answers, scored one after the other, have one shape
_SAMPLE = 512  # rows, to estimate the usual shapes
PREFETCH = 4  # batches, in a thread

_Counts = dict[str, int]


class TrainingBatches:
  """An endless iterator of this host's rows of the batches; its position can be saved and restored.

  `ROW_INDEX` says which example of the source, or which window of plain text, each row is.

  An example that is longer than the last of the task's lengths is skipped: it is replaced by the
  next one that fits, of the same data set if data sets are mixed (of the source, if none of the
  data set fits). `counts` has the number of rows that were replaced ("skipped") and of rows whose
  text was truncated for the text encoder ("truncated"), each once, up to the last batch returned,
  over all hosts.
  """

  def __init__(
    self,
    source: Rows[Example],
    task: Task,
    batch_size: int,
    seed: int,
    shard: tuple[int, int],
    mixture: MixtureSettings,
    leave_out_padding: bool,
  ):
    host, hosts = shard
    if batch_size < 1 or batch_size % hosts:
      raise UserError(
        f"a batch of {batch_size} rows cannot be divided among {hosts} hosts; choose a multiple"
      )
    self._task = task
    self._items = task.prepare(source)
    self._name = getattr(source, "name", "the data")
    rows = batch_size // hosts
    self._host_rows = slice(host * rows, (host + 1) * rows)
    dataset_index = _mixed_datasets(source, task, mixture)
    self._dataset_index, self._cap = dataset_index, mixture.cap
    self._replacements = _Replacements(len(self._items), dataset_index)
    self._too_long: set[int] = set()  # indices of examples that do not fit: tokenised once
    # Grain maps indices, not examples: a skipped example needs a replacement.
    indices = shuffled_order(len(self._items), dataset_index, mixture, seed)
    sample = self._sample(indices)
    self._min_targets = _usual_num_targets(sample, batch_size)
    self._unpadding = None
    if leave_out_padding:
      self._min_targets = targets_bucket(2 * max(map(num_targets, sample), default=1))
      rows_of_batches = _filled_up(sample, batch_size)
      self._unpadding = Unpadding(rows_of_batches, task.lengths, self._min_targets, batch_size)
    batches = indices.batch(batch_size, batch_fn=list).map(self._collate_batch)
    self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(1, PREFETCH)))
    self._distinct = DistinctRows("skipped", "truncated")

  @property
  def counts(self) -> _Counts:
    """How many rows were skipped, and truncated."""
    return self._distinct.counts

  def epoch_rows(self) -> int:
    """The rows of one epoch: those that are not too long to be trained on.

    A mixture's epoch draws as many rows as its data sets have together, each counted up to
    `mixture.cap`; the rates say how they are shared. Encodes every row.
    """
    longest, fitting = self._task.lengths[-1], np.ones(len(self._items), bool)
    with ProgressBar(total=len(fitting), desc="count rows", unit="row", delay=2) as bar:
      for index in range(len(fitting)):
        if len(self._items[index].tokens) > longest:
          fitting[index] = False
          self._too_long.add(index)
        bar.update(1)
    if self._dataset_index is None:
      return int(fitting.sum())
    _, sizes = np.unique(self._dataset_index[fitting], return_counts=True)
    return int(np.minimum(sizes, self._cap or np.inf).sum())

  def __iter__(self) -> Iterator[HostBatch]:
    return self

  def __next__(self) -> HostBatch:
    batch, rows = next(self._iterator)
    self._distinct.add(rows)
    return batch

  def get_state(self) -> dict[str, Any]:
    """The position as plain JSON values."""
    return {
      "order": self._iterator.get_state(),
      "examples": len(self._items),
      "counts": self.counts,
      "seen": self._distinct.get_state(),
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Restores a position; UserError if the number of examples has changed since."""
    if state["examples"] != len(self._items):
      raise UserError(
        f"{self._name} has {len(self._items)} examples now and had {state['examples']} when the run"
        " was saved; give it the same data, or start in another workdir"
      )
    self._iterator.set_state(dict(state["order"]))
    self._distinct.set_state(state.get("seen", {}))

  def _collate_batch(self, indices: Sequence[int]) -> tuple[HostBatch, dict[str, list[int]]]:
    """This host's rows, and the indices of those of all hosts that were skipped, and truncated."""
    drawn = [int(index) for index in indices]
    chosen = [self._fitting_example(index) for index in drawn]
    batch = collate([encoded for encoded, _ in chosen], self._task.lengths, self._min_targets)
    batch[ROW_INDEX] = np.array([own for _, own in chosen], np.int32)
    rows = {
      "skipped": [index for index, (_, own) in zip(drawn, chosen, strict=True) if own != index],
      "truncated": [own for encoded, own in chosen if encoded.truncated],
    }
    own_rows = _select_rows(batch, self._host_rows)
    return own_rows if self._unpadding is None else self._unpadding(own_rows), rows

  def _fitting_example(self, index: int) -> tuple[Encoded, int]:
    """The example at an index or the next one that fits, and its index."""
    for candidate in self._replacements.candidates(index):
      if candidate in self._too_long:
        continue
      encoded = self._items[candidate]
      if len(encoded.tokens) <= self._task.lengths[-1]:
        return encoded, candidate
      self._too_long.add(candidate)
    raise UserError(
      f"every example of {self._name} is longer than {self._task.lengths[-1]} tokens; raise"
      " data.lengths"
    )

  def _sample(self, indices: grain.MapDataset) -> list[Encoded]:
    """Those of the first rows drawn that fit, from which usual shapes are estimated.

    Of a small source the rows of one epoch, and in other orders again: Grain shuffles few rows
    slowly, a millisecond each.
    """
    drawn = [int(indices[i]) for i in range(min(_SAMPLE, len(self._items)))]
    encoded = {index: self._items[index] for index in set(drawn)}
    rng, times = np.random.default_rng(0), _SAMPLE // max(len(drawn), 1)
    again = (rng.permutation(drawn).tolist() for _ in range(times))
    rows = (encoded[index] for index in itertools.chain(drawn, *again))
    fitting = (one for one in rows if len(one.tokens) <= self._task.lengths[-1])
    return list(itertools.islice(fitting, _SAMPLE))


class _Replacements:
  """Which examples replace one that does not fit: the next ones of its data set, then all others.

  dataset_index: the data set of each example, if data sets are mixed.
  """

  def __init__(self, count: int, dataset_index: np.ndarray | None):
    self._count, self._dataset_index = count, dataset_index
    self._members: dict[int, np.ndarray] = {}
    if dataset_index is not None:
      self._members = {
        int(dataset): np.flatnonzero(dataset_index == dataset)
        for dataset in np.unique(dataset_index)
      }

  def candidates(self, index: int) -> Iterator[int]:
    """The index itself, then every other one in the order in which they replace it."""
    yield index
    datasets = self._dataset_index
    if datasets is not None:
      members = self._members[int(datasets[index])]
      rank = int(np.searchsorted(members, index))
      yield from (int(members[(rank + k) % len(members)]) for k in range(1, len(members)))
    for step in range(1, self._count):
      other = (index + step) % self._count
      if datasets is None or datasets[other] != datasets[index]:
        yield other


class ScoringBatches:
  """A finite sequence of batches over examples of a source, to score them.

  Rows that are padded to the same length stand together, of these such with texts for the encoder
  that are about as long; the last batch is filled up with empty rows (mask and target_mask 0). The
  examples are the first `max_examples`, or of a source with data sets a stratified sample. Examples
  longer than the task's last length are left out and counted in
  `counts["skipped"]`.

  indices: which example of the source each row is, in the order of the rows.
  """

  def __init__(
    self,
    source: Rows[Example],
    task: Task,
    batch_size: int,
    max_examples: int | None,
    leave_out_padding: bool,
  ):
    items = task.prepare(source)
    rows = [(index, items[index]) for index in _scored(source, items, task, max_examples)]
    fitting = [(index, row) for index, row in rows if len(row.tokens) <= task.lengths[-1]]
    if not fitting:
      raise _none_fits(source, task, len(rows))
    self.counts: _Counts = {"skipped": len(rows) - len(fitting)}
    fitting = sorted(fitting, key=lambda one: padded_lengths(one[1], task.lengths))
    self.indices = [int(index) for index, _ in fitting]
    self._rows = [row for _, row in fitting]
    self._lengths, self._size = task.lengths, max(batch_size, 1)
    self._unpadding = None
    if leave_out_padding:
      self._unpadding = Unpadding(self._rows, task.lengths, _MIN_SCORED, self._size)

  @property
  def mean_prompt(self) -> tuple[int, int]:
    """Tokens of a mean row before its targets, and of its text for the encoder; rounded."""
    encoder = [len(row.encoder_tokens or ()) for row in self._rows]
    lengths = [row.target_start for row in self._rows]
    return round(sum(lengths) / len(lengths)), round(sum(encoder) / len(encoder))

  def __len__(self) -> int:
    return -(-len(self._rows) // self._size)

  def __iter__(self) -> Iterator[HostBatch]:
    for start in range(0, len(self._rows), self._size):
      chosen = self._rows[start : start + self._size]
      batch = collate(chosen, self._lengths, _MIN_SCORED, self._size)
      yield batch if self._unpadding is None else self._unpadding(batch)


def training_batches(
  source: Rows[Example],
  task: Task,
  batch_size: int,
  seed: int = 0,
  shard: tuple[int, int] = (0, 1),
  mixture: MixtureSettings | None = None,
  leave_out_padding: bool = False,
) -> TrainingBatches:
  """Endless batches for training. Equal arguments give equal batches.

  Args:
    source: the examples. task: encodes them.
    batch_size: the rows of all hosts. seed: of the order.
    shard: (this host's index, number of hosts).
    mixture: how often each of the source's data sets is drawn from.
    leave_out_padding: give batches `real_positions` and `real_targets`; for one host with one
      device.

  Raises:
    UserError: a batch that cannot be divided among the hosts; data sets of plain text to be mixed,
      whose windows span data sets.
  """
  return TrainingBatches(
    source, task, batch_size, seed, shard, mixture or MixtureSettings(), leave_out_padding
  )


def scoring_batches(
  source: Rows[Example],
  task: Task,
  batch_size: int,
  max_examples: int | None = None,
  leave_out_padding: bool = False,
) -> ScoringBatches:
  """Batches over `max_examples` examples (of text: windows), the same on every host.

  leave_out_padding: see `training_batches`.
  """
  return ScoringBatches(source, task, batch_size, max_examples, leave_out_padding)


def check_fit(source: Rows[Example], task: Task, max_examples: int | None = None) -> None:
  """UserError if none of the examples that `scoring_batches` takes, or of all, fits.

  Encodes examples until one does. Windows of plain text always fit.
  """
  if isinstance(task, QuestionTask):
    items = task.prepare(source)
    chosen = _scored(source, items, task, max_examples)
    if not any(len(items[index].tokens) <= task.lengths[-1] for index in chosen):
      raise _none_fits(source, task, len(chosen))


def _scored(
  source: Rows[Example], items: Sequence[Any], task: Task, max_examples: int | None
) -> Sequence[int]:
  """The examples to score: the first ones, or a stratified sample of a source with data sets."""
  size = len(items) if max_examples is None else min(max_examples, len(items))
  if isinstance(task, QuestionTask) and isinstance(source, Source):
    return stratified_sample(source, size).tolist()
  return range(size)


def _none_fits(source: Rows[Example], task: Task, size: int) -> UserError:
  return UserError(
    f"none of {size} examples of {getattr(source, 'name', 'the data')} fits into"
    f" {task.lengths[-1]} tokens; raise data.lengths"
  )


def _filled_up(sample: Sequence[Encoded], batch_size: int) -> list[Encoded]:
  """As many of the rows again, from the first on, as make the last batch a whole one."""
  missing = -len(sample) % batch_size
  return [*sample, *itertools.islice(itertools.cycle(sample), missing)]


def _usual_num_targets(sample: Sequence[Encoded], batch_size: int) -> int:
  """M that about half of all batches do not exceed."""
  counts = [num_targets(one) for one in sample]
  usual = np.quantile(counts, 1 - 0.5 / batch_size, method="higher") if counts else 1
  return targets_bucket(int(usual))


def _mixed_datasets(
  source: Rows[Example], task: Task, mixture: MixtureSettings
) -> np.ndarray | None:
  """int [N], the data set of each example, if data sets are mixed."""
  if not mixture.sampling:
    return None
  if isinstance(task, LanguageModelTask):
    raise UserError(
      f"data.sampling {mixture.sampling!r} mixes data sets of questions, and"
      f" {getattr(source, 'name', 'the data')} is plain text; leave it empty"
    )
  return getattr(source, "dataset_index", None)


def _select_rows(batch: HostBatch, chosen: slice) -> HostBatch:
  return {name: value[chosen] for name, value in batch.items()}
