"""Mixtures: the rates of data sets, their epochs, the stratified sample, what is held out."""

import json
from collections import Counter

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.mixture import check_held_out, mixing_rates, shuffled_order, stratified_sample
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.data.sources import open_source

DATASETS = np.repeat([0, 1, 2], [90, 30, 10])[np.random.default_rng(0).permutation(130)]


def write(path, kinds, name="d"):
  """A source with an example for each (data set, template) of `kinds`."""
  rows = [
    {"dataset": dataset, "template": template, "input": f"{name} {number}", "target": "x"}
    for number, (dataset, template) in enumerate(kinds)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return open_source(str(path))


@pytest.mark.parametrize(
  "options, expected",
  [
    (MixtureSettings("proportional"), [90, 30, 10]),
    (MixtureSettings("proportional", cap=30), [30, 30, 10]),
    (MixtureSettings("temperature", 1.0), [90, 30, 10]),
    (MixtureSettings("temperature", 2.0), [90**0.5, 30**0.5, 10**0.5]),
    (MixtureSettings("temperature", 2.0, cap=40), [40**0.5, 30**0.5, 10**0.5]),
    (MixtureSettings("temperature", 1e9), [1, 1, 1]),
  ],
)
def test_rates_are_what_is_drawn(options, expected):
  expected = np.array(expected) / sum(expected)
  assert np.allclose(mixing_rates(np.array([90, 30, 10]), options), expected)
  drawn = shuffled_order(130, DATASETS, options, seed=1)
  for start in (0, 10_000_000):  # any stretch, near or far
    counted = np.bincount([DATASETS[drawn[start + i]] for i in range(600)], minlength=3)
    assert np.abs(counted / 600 - expected).max() < 0.01


def test_each_data_set_has_epochs_of_its_own():
  drawn = shuffled_order(130, DATASETS, MixtureSettings("temperature", 2.0), seed=1)
  listed = [int(drawn[i]) for i in range(1000)]
  for group, size in ((0, 90), (1, 30), (2, 10)):
    mine = [position for position in listed if DATASETS[position] == group]
    epochs = [mine[start : start + size] for start in range(0, len(mine) - size, size)]
    members = [p for p in range(130) if DATASETS[p] == group]
    assert len(epochs) >= 4 and all(sorted(epoch) == members for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_decides():
  options = MixtureSettings("proportional")
  first, again, other = (shuffled_order(130, DATASETS, options, seed) for seed in (1, 1, 2))
  assert [first[i] for i in range(50)] == [again[i] for i in range(50)]
  assert [first[i] for i in range(50)] != [other[i] for i in range(50)]


def test_data_sets_of_one_size_are_not_in_one_order():
  drawn = shuffled_order(40, np.repeat([0, 1], 20), MixtureSettings("proportional"), seed=0)
  listed = [int(drawn[i]) for i in range(40)]
  assert [p for p in listed if p < 20] != [p - 20 for p in listed if p >= 20]


def test_one_data_set_and_no_sampling_are_the_plain_order():
  plain = [shuffled_order(20, None, MixtureSettings(), 3)[i] for i in range(60)]
  one = shuffled_order(20, np.zeros(20, int), MixtureSettings("temperature"), 3)
  alike = shuffled_order(20, np.arange(20) % 3, MixtureSettings(), 3)
  assert plain == [one[i] for i in range(60)] == [alike[i] for i in range(60)]
  assert sorted(plain[:20]) == list(range(20))


@pytest.mark.parametrize(
  "values, message",
  [
    ({"sampling": "even"}, "data.sampling is 'even'; it is one of"),
    ({"temperature": 0.0}, "data.temperature is 0.0"),
    ({"temperature": float("nan")}, "data.temperature is nan"),
    ({"temperature": float("inf")}, "data.temperature is inf"),
    ({"cap": -1}, "data.cap is -1"),
  ],
)
def test_values_out_of_range(values, message):
  with pytest.raises(UserError, match=message):
    MixtureSettings(**values)


def test_a_sample_holds_each_data_set_and_template_in_proportion(tmp_path):
  kinds = [("a", "s")] * 60 + [("b", "s")] * 20 + [("a", "t")] * 20
  kinds = [kinds[i] for i in np.random.default_rng(0).permutation(100)]
  source = write(tmp_path / "rows.jsonl", kinds)
  chosen = stratified_sample(source, 10)
  assert Counter(kinds[i] for i in chosen) == {("a", "s"): 6, ("b", "s"): 2, ("a", "t"): 2}
  assert chosen.tolist() == sorted(set(chosen.tolist()))
  assert (stratified_sample(source, 10) == chosen).all()
  for count in range(1, 101):
    chosen = stratified_sample(source, count)
    assert len(set(chosen.tolist())) == count
    counted = Counter(kinds[i] for i in chosen)
    assert all(abs(counted[k] - n * count / 100) < 1 for k, n in Counter(kinds).items())
  assert stratified_sample(source, 500).tolist() == list(range(100))


def test_a_sample_goes_from_end_to_end(tmp_path):
  source = write(tmp_path / "rows.jsonl", [("a", "s")] * 100)
  assert stratified_sample(source, 4).tolist() == [12, 37, 62, 87]


def test_a_sample_without_data_sets_is_the_first(tmp_path):
  (tmp_path / "rows.jsonl").write_text('{"text": "red"}\n' * 9)
  source = open_source(str(tmp_path / "rows.jsonl"))
  assert stratified_sample(source, 4).tolist() == [0, 1, 2, 3]
  assert stratified_sample(source, 40).tolist() == list(range(9))


def test_held_out_data_sets_must_not_be_trained_on(tmp_path):
  train = write(tmp_path / "train.jsonl", [("a", "s"), ("b", "s")])
  fine = write(tmp_path / "fine.jsonl", [("c", "s")])
  bad = write(tmp_path / "bad.jsonl", [("c", "s"), ("b", "t")])
  check_held_out(train, [fine])
  with pytest.raises(UserError, match="bad.jsonl is held out, and b of it is in the training"):
    check_held_out(train, [fine, bad])


def test_a_held_out_file_goes_by_its_contents(tmp_path):
  def file(name, question):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps({"question": question, "answers": ["a"]}))
    return open_source(str(tmp_path / name))

  train, other = file("a/train.jsonl", "one?"), file("b/train.jsonl", "two?")
  check_held_out(train, [other])
  with pytest.raises(UserError, match="copy.jsonl is held out, and copy of it is in the training"):
    check_held_out(train, [other, file("copy.jsonl", "one?")])


def test_held_out_sources_without_names_go_by_their_own_name(cache):
  with pytest.raises(UserError, match="world_facts/test is held out, and world_facts of it"):
    check_held_out(open_source("world_facts/train"), [open_source("world_facts/test")])
