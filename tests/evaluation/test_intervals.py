"""Bootstrap intervals against what is known of means, and their bounds."""

import numpy as np
import pytest

from frozen_jax.evaluation.intervals import interval, with_intervals


def test_the_interval_of_a_share_is_about_two_standard_errors():
  values = np.array([100.0] * 120 + [0.0] * 280)
  low, high = interval(values)
  error = values.std() / np.sqrt(len(values))
  assert low == pytest.approx(30 - 1.96 * error, abs=0.7)
  assert high == pytest.approx(30 + 1.96 * error, abs=0.7)
  assert interval(values) == (low, high)


def test_fewer_rows_give_a_wider_interval():
  few, many = (interval(np.tile([0.0, 100.0], count)) for count in (10, 1000))
  assert few[0] < many[0] < 50 < many[1] < few[1]


def test_figures_of_equal_rows_and_of_one_row():
  found = with_intervals([{"f1": 40.0}, {"f1": 40.0}])
  assert found == {"f1": 40.0, "f1_low": 40.0, "f1_high": 40.0}
  assert with_intervals([{"f1": 7.0}]) == {"f1": 7.0, "f1_low": 7.0, "f1_high": 7.0}
