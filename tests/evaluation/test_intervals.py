"""Bootstrap intervals against what is known of means, and their bounds."""

import numpy as np
import pytest

from frozen_jax.evaluation.intervals import (
  bootstrap_interval,
  interval_over_runs,
  means_with_intervals,
  paired_difference,
)


def test_the_interval_of_a_share_is_about_two_standard_errors():
  values = np.array([100.0] * 120 + [0.0] * 280)
  low, high = bootstrap_interval(values)
  error = values.std() / np.sqrt(len(values))
  assert low == pytest.approx(30 - 1.96 * error, abs=0.7)
  assert high == pytest.approx(30 + 1.96 * error, abs=0.7)
  assert bootstrap_interval(values) == (low, high)


def test_fewer_rows_give_a_wider_interval():
  few, many = (bootstrap_interval(np.tile([0.0, 100.0], count)) for count in (10, 1000))
  assert few[0] < many[0] < 50 < many[1] < few[1]


def test_figures_of_equal_rows_and_of_one_row():
  result = means_with_intervals([{"f1": 40.0}, {"f1": 40.0}])
  assert result == {"f1": 40.0, "f1_low": 40.0, "f1_high": 40.0}
  assert means_with_intervals([{"f1": 7.0}]) == {"f1": 7.0, "f1_low": 7.0, "f1_high": 7.0}


def test_the_paired_interval_is_that_of_mcnemar_and_not_of_two_samples():
  # Of 1000 rows the second answers 60 right that the first has wrong, and 40 the other way round:
  # difference 2, variance of a row's difference 0.1 - 0.02**2, whatever both have right.
  first = np.array([100.0] * 540 + [0.0] * 460)
  second = np.array([100.0] * 500 + [0.0] * 40 + [100.0] * 60 + [0.0] * 400)
  result = paired_difference(first, second)
  error = 100 * np.sqrt((0.1 - 0.02**2) / 1000)  # 1.0; unpaired it would be 2.2
  assert result["difference"] == pytest.approx(2.0)
  assert result["difference_low"] == pytest.approx(2 - 1.96 * error, abs=0.15)
  assert result["difference_high"] == pytest.approx(2 + 1.96 * error, abs=0.15)
  back = paired_difference(second, first)
  assert back["difference"] == -result["difference"]
  assert back["difference_low"] == pytest.approx(-result["difference_high"], abs=0.15)


def test_a_difference_that_every_row_has_is_certain():
  result = paired_difference(np.array([10.0, 70.0, 30.0]), np.array([15.0, 75.0, 35.0]))
  assert result == {"difference": 5.0, "difference_low": 5.0, "difference_high": 5.0}


@pytest.mark.parametrize("first, second", [([1.0, 2.0], [1.0]), ([], []), ([[1.0]], [[1.0]])])
def test_values_that_are_not_of_the_same_rows(first, second):
  with pytest.raises(ValueError, match="same rows"):
    paired_difference(np.array(first), np.array(second))


@pytest.mark.parametrize("of_run, of_row, left", [(0, 1, 1), (1, 1, 1), (1, 0, 0.5), (3, 1, 1)])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_an_interval_over_runs_and_rows_holds_the_mean_as_often_as_it_says(
  runs, of_run, of_row, left
):
  """With two runs a little less often."""
  rng = np.random.default_rng(runs)
  rows, held = 60, 0
  for _ in range(400):
    values = of_run / rows**0.5 * rng.normal(size=(runs, 1)) + of_row * rng.normal(size=rows)
    low, high = interval_over_runs(5.0 + values + left * rng.normal(size=(runs, rows)))
    held += low < 5.0 < high
  assert (0.87 if runs == 2 else 0.91) <= held / 400 <= 0.985


def test_an_interval_over_equal_runs_is_that_over_rows():
  values = np.random.default_rng(0).normal(size=400)
  low, high = interval_over_runs(np.stack([values, values, values]))
  error = values.std(ddof=1) / 20
  assert (low, high) == pytest.approx(
    (values.mean() - 1.959964 * error, values.mean() + 1.959964 * error)
  )
  assert interval_over_runs(np.full((2, 3), 7.0)) == (7.0, 7.0)


def test_an_interval_over_rows_without_difference_is_that_over_runs():
  """Three runs, each with one value for all rows: t with two degrees of freedom."""
  low, high = interval_over_runs(np.array([[1.0] * 8, [2.0] * 8, [3.0] * 8]))
  assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4)


def test_one_run_has_no_interval_over_runs():
  with pytest.raises(ValueError, match="two"):
    interval_over_runs(np.ones((1, 4)))
