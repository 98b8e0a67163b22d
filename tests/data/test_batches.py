"""Batches: padding, order, epochs, resume, hosts, and what is counted."""

import collections
import itertools
import json

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.batches import scoring_batches, training_batches
from frozen_jax.data.collate import collate, targets_bucket
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.data.tasks import Encoded, LanguageModelTask, QuestionTask
from frozen_jax.data.unpadding import real_indices


def question(number, words=1, answer="red"):
  return {"question": " ".join([str(number)] * words), "answers": [answer], "id": str(number)}


def numbers(batch, words):
  """The number each row's question is made of."""
  return [int(words.decode([row[1]])) for row in batch["tokens"] if row.any()]


def equal(one, other):
  return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


@pytest.fixture
def task(words):
  return QuestionTask(words, lengths=(8, 16))


def test_padding():
  rows = [Encoded([5, 6, 7, 8, 9], 3), Encoded([5, 6], 1)]
  batch = collate(rows, (4, 8), 4, size=3)
  assert all(value.dtype == np.int32 for value in batch.values())
  assert batch["tokens"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [5, 6] + [0] * 6, [0] * 8]
  assert batch["mask"].sum(1).tolist() == [5, 2, 0]
  assert batch["target_positions"].tolist() == [[2, 3, 0, 0], [0] * 4, [0] * 4]
  assert batch["target_ids"].tolist() == [[8, 9, 0, 0], [6, 0, 0, 0], [0] * 4]
  assert batch["target_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4]
  assert collate(rows[1:], (4, 8), 16)["target_ids"].shape == (1, 16)
  assert collate(rows[1:], (4, 8), 4)["tokens"].shape == (1, 4)


def test_buckets_of_targets():
  assert [targets_bucket(count) for count in (1, 4, 5, 8, 9, 127)] == [4, 4, 8, 8, 16, 128]


def test_target_is_what_follows_its_position(task, words):
  batch = next(training_batches([question(n) for n in range(20)], task, 6))
  for row in range(6):
    for place in np.flatnonzero(batch["target_mask"][row]):
      position = batch["target_positions"][row, place]
      assert batch["tokens"][row, position + 1] == batch["target_ids"][row, place]
  kept = batch["target_ids"][0][batch["target_mask"][0] == 1]
  assert words.decode(kept) == "red <end>"


def test_each_epoch_holds_each_example_once_in_another_order(task, words):
  batches = training_batches([question(n) for n in range(12)], task, 4, seed=3)
  epochs = [[n for _ in range(3) for n in numbers(next(batches), words)] for _ in range(3)]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  again = training_batches([question(n) for n in range(12)], task, 4, seed=3)
  assert [n for _ in range(3) for n in numbers(next(again), words)] == epochs[0]
  other = training_batches([question(n) for n in range(12)], task, 4, seed=4)
  assert [n for _ in range(3) for n in numbers(next(other), words)] != epochs[0]


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7, 11])
def test_a_resumed_run_has_the_same_batches(task, stop):
  """10 examples in batches of 4: batches straddle epochs; one example in five is skipped."""
  source = [question(n, words=30 if n % 5 == 0 else 1 + n % 8) for n in range(10)]
  whole = training_batches(source, task, 4, seed=1)
  expected = [next(whole) for _ in range(stop + 9)]
  first = training_batches(source, task, 4, seed=1)
  for _ in range(stop):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  next(first)  # what is made ahead or given out later must not leak into the state
  second = training_batches(source, task, 4, seed=1)
  next(second)
  second.set_state(state)
  assert second.counts == state["counts"]
  for index in range(stop, stop + 9):
    assert equal(next(second), expected[index])
  assert second.counts == whole.counts and whole.counts["skipped"] > 0


def test_resume_on_other_data_is_refused(task):
  state = training_batches([question(n) for n in range(10)], task, 4).get_state()
  with pytest.raises(UserError, match="11 examples now and had 10"):
    training_batches([question(n) for n in range(11)], task, 4).set_state(state)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one(task, hosts):
  source = [question(n, words=1 + n % 13) for n in range(30)]
  single = training_batches(source, task, 8, seed=5)
  shares = [training_batches(source, task, 8, seed=5, shard=(i, hosts)) for i in range(hosts)]
  for _ in range(10):
    whole, parts = next(single), [next(share) for share in shares]
    assert {part["tokens"].shape for part in parts} == {(8 // hosts, whole["tokens"].shape[1])}
    joined = {key: np.concatenate([part[key] for part in parts]) for key in whole}
    assert equal(joined, whole)
  assert all(share.counts == single.counts for share in shares)


def test_a_batch_must_divide_among_hosts(task):
  with pytest.raises(UserError, match="10 rows cannot be divided among 4 hosts"):
    training_batches([question(1)], task, 10, shard=(0, 4))


def test_few_shapes(task):
  """Lengths from the given ones, and one number of targets although the answers differ."""
  answers = ["red", "red green", "red green blue"]
  source = [question(n, 1 + n % 10, answers[n % 3]) for n in range(60)]
  batches = training_batches(source, task, 16)
  shapes = {next(batches)["tokens"].shape + next(batches)["target_ids"].shape for _ in range(30)}
  assert shapes == {(16, 16, 16, 4)}
  short = [question(n) for n in range(60)]
  assert next(training_batches(short, task, 16))["tokens"].shape == (16, 8)


def test_skipped_examples_are_replaced_and_counted(task, words):
  source = [question(n, words=40 if n in (3, 4) else 1) for n in range(8)]
  batches = training_batches(source, task, 8)
  for _ in range(3):  # epochs: a row counts once
    assert sorted(numbers(next(batches), words)) == [0, 1, 2, 5, 5, 5, 6, 7]
    assert batches.counts == {"skipped": 2, "truncated": 0}  # 3 and 4
  earlier = {key: value for key, value in batches.get_state().items() if key != "seen"}
  batches.set_state(earlier)
  assert batches.counts == {"skipped": 0, "truncated": 0}


def test_nothing_fits(task):
  source = [question(n, words=40) for n in range(8)]
  with pytest.raises(UserError, match="every example of the data is longer than 16 tokens"):
    next(training_batches(source, task, 2))
  with pytest.raises(UserError, match="none of 8 examples"):
    scoring_batches(source, task, 2)


def test_scoring_batches(task, words):
  source = [question(n, words=40 if n == 2 else 1 + n // 2) for n in range(11)]
  batches = scoring_batches(source, task, 4, max_examples=10)
  assert len(batches) == 3 and batches.counts == {"skipped": 1}
  listed = list(batches)
  assert sorted(n for batch in listed for n in numbers(batch, words)) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
  assert all(len(batch["tokens"]) == 4 for batch in listed)
  assert [batch["tokens"].shape[1] for batch in listed] == [8, 16, 16]
  last = listed[-1]
  assert last["mask"].any(1).tolist() == [True, False, False, False]
  assert last["target_mask"].any(1).tolist() == [True, False, False, False]
  assert all(equal(one, other) for one, other in zip(listed, batches, strict=True))  # once more
  assert sum(len(numbers(batch, words)) for batch in scoring_batches(source, task, 4)) == 10


def test_text_in_windows(words):
  task = LanguageModelTask(words, (8,))
  source = [{"text": " ".join(str(10 * n + k) for k in range(10))} for n in range(5)]
  batches = training_batches(source, task, 7)  # 55 tokens: 7 windows
  batch = next(batches)
  assert batch["tokens"].shape == (7, 8) and batch["target_ids"].shape == (7, 8)
  assert batch["mask"].sum() == 55
  assert batch["target_mask"].sum() == 55 - 7
  full = batch["mask"].all(1)
  assert (batch["target_ids"][full, :7] == batch["tokens"][full, 1:]).all()
  assert (batch["target_positions"][full, :7] == np.arange(7)).all()


class Grouped(list):
  """Questions 0 .. 39 of two data sets: 30 rows and 10, one in five too long."""

  dataset_index = np.repeat([0, 1], [30, 10])

  def __init__(self, longs=5):
    super().__init__(question(n, words=40 if n % longs == 0 else 1 + n % 7) for n in range(40))


MIXED = MixtureSettings("temperature", 2.0, cap=16)  # shares 4 : 10 ** 0.5


def test_a_mixture_holds_its_shares_and_skips_within_a_data_set(task, words):
  batches = training_batches(Grouped(), task, 8, mixture=MIXED)
  drawn = [n for _ in range(100) for n in numbers(next(batches), words)]
  share = sum(n >= 30 for n in drawn) / len(drawn)
  assert abs(share - 10**0.5 / (4 + 10**0.5)) < 0.01
  assert all(n % 5 for n in drawn) and set(drawn) == {n for n in range(40) if n % 5}
  assert batches.counts["skipped"] == 8  # of 40, however often they were drawn


@pytest.mark.parametrize("stop", [0, 3, 8])
def test_a_mixture_resumes_and_is_shared_by_hosts(task, stop):
  whole = training_batches(Grouped(), task, 4, seed=2, mixture=MIXED)
  expected = [next(whole) for _ in range(stop + 9)]
  parts = []
  for host in range(2):
    first = training_batches(Grouped(), task, 4, seed=2, shard=(host, 2), mixture=MIXED)
    for _ in range(stop):
      next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = training_batches(Grouped(), task, 4, seed=2, shard=(host, 2), mixture=MIXED)
    second.set_state(state)
    parts.append([next(second) for _ in range(9)])
  for one, other, both in zip(*parts, expected[stop:], strict=True):
    assert equal({key: np.concatenate([one[key], other[key]]) for key in one}, both)


def test_a_data_set_of_which_nothing_fits_gives_way(task, words):
  source = Grouped()
  source[30:] = [question(n, words=40) for n in range(30, 40)]
  batches = training_batches(source, task, 8, mixture=MIXED)
  drawn = [n for _ in range(20) for n in numbers(next(batches), words)]
  assert len(drawn) == 160 and max(drawn) < 30
  assert batches.counts["skipped"] == 10 + 6


def test_text_is_not_mixed(words):
  with pytest.raises(UserError, match="data.sampling 'temperature' mixes data sets of questions"):
    training_batches([{"text": "1 2 3"}], LanguageModelTask(words, (8,)), 1, mixture=MIXED)


@pytest.mark.parametrize(
  ("name", "mask"), [("real_positions", "mask"), ("real_targets", "target_mask")]
)
def test_what_is_real_has_few_sizes_and_holds_all(words, name, mask):
  rows = [question(n, words=1 + n % 5, answer=" red" * (1 + n % 7)) for n in range(40)]
  make = lambda **more: training_batches(rows, QuestionTask(words, lengths=(24,)), 8, **more)
  with_padding, sizes = make(), collections.Counter()
  for batch in itertools.islice(make(leave_out_padding=True), 20):
    real, count, expected = batch[name], int(batch[mask].sum()), next(with_padding)
    for key, array in expected.items():  # but for the M of targets, it is the same
      np.testing.assert_array_equal(batch[key][tuple(map(slice, array.shape))], array)
    np.testing.assert_array_equal(real[:count], np.flatnonzero(batch[mask]))
    assert (real[count:] == batch[mask].size).all() and real.dtype == np.int32
    sizes[len(real)] += 1
  assert len(sizes) <= 2 and max(sizes.values()) > 15, sizes


@pytest.mark.parametrize("real, size", [(0, 12), (12, 12), (13, 24), (24, 24), (25, None)])
def test_a_batch_that_needs_more_has_twice_the_size(real, size):
  """Of 32 places; more than 28 are all of them."""
  mask = (np.arange(32) < real).astype(np.int32).reshape(4, 8)
  found = real_indices(mask, {8: 12})
  assert (None if found is None else len(found)) == size
  assert real_indices(mask, {9: 12}) is None, "of another width nothing is known"


def test_the_size_of_targets_does_not_follow_the_longest_answer(words):
  """One answer in 128 has 100 tokens, the others two."""
  rows = [question(n, answer=" red" * (100 if n % 128 == 0 else 2)) for n in range(512)]
  batches = training_batches(rows, QuestionTask(words, lengths=(128,)), 16, leave_out_padding=True)
  found = [next(batches) for _ in range(32)]
  assert {batch["target_ids"].shape for batch in found} == {(16, 256)}
  assert max(len(batch["real_targets"]) for batch in found) <= 2 * 9 / 8 * (2 * 100 + 14 * 2)
  assert np.median([len(batch["real_targets"]) for batch in found]) <= 9 / 8 * (300 + 8)


def test_a_last_batch_of_one_long_row_changes_no_size(words):
  rows = [question(n, answer=" red" * (14 if n == 64 else 2)) for n in range(65)]
  task = QuestionTask(words, lengths=(16, 32))
  found = list(scoring_batches(rows, task, 16, leave_out_padding=True))
  assert len(found) == 5 and all(len(batch["real_targets"]) <= 64 for batch in found)
  assert all("real_positions" in batch for batch in found)


def test_few_long_answers_make_no_more_shapes_where_padding_is_left_out(words):
  rows = [question(n, words=2, answer=" red" * (9 if n % 25 == 0 else 2)) for n in range(100)]
  make = lambda **more: training_batches(rows, QuestionTask(words, lengths=(32,)), 4, **more)
  shapes = lambda batches: {batch["target_ids"].shape for batch in itertools.islice(batches, 30)}
  assert shapes(make()) == {(4, 4), (4, 16)}
  assert shapes(make(leave_out_padding=True)) == {(4, 32)}


@pytest.mark.parametrize("name", ["real_positions", "real_targets"])
def test_what_is_scored_has_one_size_a_length(words, name):
  rows = [question(n, words=1 + n % 9) for n in range(40)]
  task = QuestionTask(words, lengths=(8, 16))
  found = list(scoring_batches(rows, task, 8, leave_out_padding=True))
  sizes = {(batch["mask"].shape[1], len(batch[name])) for batch in found}
  assert sorted(length for length, _ in sizes) == [8, 16], sizes
  with_padding = [batch["tokens"] for batch in scoring_batches(rows, task, 8)]
  for batch, tokens in zip(found, with_padding, strict=True):
    np.testing.assert_array_equal(batch["tokens"], tokens)


def test_where_little_is_padding_all_positions_stay(words):
  rows = [question(n, words=2) for n in range(8)]
  (size,) = {len(QuestionTask(words, lengths=(16,)).prepare(rows)[0].tokens)}
  task = QuestionTask(words, lengths=(size,))
  assert "real_positions" not in next(training_batches(rows, task, 4, leave_out_padding=True))
