"""Sizes to which batches are padded."""

from frozen_jax.text.padding import batch_bucket, power_of_two


def test_there_are_few_sizes_and_none_above_the_most():
  assert [batch_bucket(n, 64) for n in (1, 2, 4, 5, 16, 17, 64)] == [1, 4, 4, 16, 16, 64, 64]
  assert [batch_bucket(n, 32) for n in (16, 17, 32)] == [16, 32, 32]
  assert [batch_bucket(n, 100) for n in (64, 65, 100)] == [64, 100, 100]


def test_powers_of_two():
  assert [power_of_two(n) for n in (0, 1, 2, 3, 5, 8)] == [1, 1, 2, 4, 8, 8]
  assert power_of_two(3, 16) == 16
