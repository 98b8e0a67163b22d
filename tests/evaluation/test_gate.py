"""The gate: its threshold and calibration, and accuracy against compute, by hand and as laws."""

import dataclasses
import json
import math

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.gate import (
  MEASURES,
  Gate,
  calibration_error,
  deferral_curves,
  fit_gate,
  operating_point,
  share_of_gain,
)

# Five rows, of which the two in the middle are equally sure. The second pass gains on the least
# sure and on one of the two, and loses on the other and on the surest.
SURE = np.array([0.9, 0.5, 0.1, 0.5, 0.7])
FIRST = np.array([100.0, 100.0, 0.0, 0.0, 100.0])
SECOND = np.array([0.0, 0.0, 100.0, 100.0, 100.0])


def rows(seed, count=60, ties=True):
  """Confidences, and scores of two passes that have something to do with them."""
  random = np.random.default_rng(seed)
  sure = random.random(count)
  if ties:
    sure = np.round(sure * 8) / 8
  first = 100.0 * (random.random(count) < sure)
  second = 100.0 * (random.random(count) < 0.3 + 0.5 * sure)
  return sure, first, second


# The threshold


@pytest.mark.parametrize(
  "budget, second_pass",
  [(1.0, []), (1.19, []), (1.2, [2]), (1.4, [2]), (1.6, [1, 2, 3]), (1.8, [1, 2, 3, 4])],
)
def test_the_least_sure_rows_take_the_second_pass(budget, second_pass):
  gate, figures = fit_gate(SURE, FIRST > 0, budget, "probability")
  assert np.flatnonzero(gate.needs_second_pass(SURE)).tolist() == second_pass
  assert figures["compute"] == 1 + len(second_pass) / 5
  assert figures["rows"] == 5


def test_budgets_that_floating_point_puts_below_a_row():
  for rows_taken in range(11):
    sure = np.linspace(0, 1, 10)
    gate, _ = fit_gate(sure, sure > 0.5, 1 + rows_taken / 10, "margin")
    assert gate.needs_second_pass(sure).sum() == rows_taken


def test_the_ends_hold_for_any_data():
  never, _ = fit_gate(SURE, FIRST > 0, 1.0, "agreement")
  always, _ = fit_gate(SURE, FIRST > 0, 2.0, "agreement")
  other = np.array([0.0, 0.05, 1.0])
  assert not never.needs_second_pass(other).any()
  assert always.needs_second_pass(other).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_never_exceeded_on_validation_and_used_up_without_ties(seed):
  budget = float(np.random.default_rng(seed).uniform(1, 2))
  for ties in (True, False):
    sure, first, _ = rows(seed, ties=ties)
    gate, figures = fit_gate(sure, first > 0, budget, "margin")
    assert figures["compute"] <= budget
    assert figures["compute"] == 1 + gate.needs_second_pass(sure).mean()
    least_taken = sure[gate.needs_second_pass(sure)].max(initial=0)
    assert least_taken <= sure[~gate.needs_second_pass(sure)].min()
  assert figures["compute"] > budget - 1 / len(sure)


@pytest.mark.parametrize("budget", [0.99, 2.01, 0.3, math.nan, math.inf])
def test_budgets_that_no_gate_has(budget):
  with pytest.raises(UserError, match=r"compute_budget is .*; give passes"):
    fit_gate(SURE, FIRST > 0, budget, "probability")


def test_an_unknown_measure_and_no_validation_rows():
  with pytest.raises(UserError, match="'entropy' is not known; give one of probability"):
    fit_gate(SURE, FIRST > 0, 1.3, "entropy")
  with pytest.raises(UserError, match="there are none"):
    fit_gate(np.zeros(0), np.zeros(0, bool), 1.3, "margin")


@pytest.mark.parametrize("bad", [[0.5, math.nan], [0.5, -2.3], [0.5, 1.5], [[0.5, 0.5]]])
def test_confidences_that_are_none(bad):
  with pytest.raises(ValueError, match="from 0 to 1"):
    fit_gate(np.array(bad), np.array([True, False]), 1.3, "probability")
  with pytest.raises(ValueError, match="from 0 to 1"):
    Gate("probability", 0.5, 1.0, 0.0).needs_second_pass(np.array(bad))


def test_rounding_beyond_a_bound_is_taken_as_the_bound():
  always, _ = fit_gate(SURE, FIRST > 0, 2.0, "probability")
  assert always.needs_second_pass(np.array([np.exp(np.float32(1e-6))])).all()


def test_outcomes_of_other_rows():
  with pytest.raises(ValueError, match="outcomes"):
    fit_gate(SURE, np.array([True]), 1.3, "probability")


def test_a_gate_goes_through_json():
  for budget in (1.0, 1.3, 2.0):
    gate, figures = fit_gate(SURE, FIRST > 0, budget, "agreement")
    text = json.dumps([dataclasses.asdict(gate), figures], allow_nan=False)
    assert Gate(**json.loads(text)[0]) == gate


# The calibration


def test_the_calibration_error_by_hand():
  # Bins of a fifteenth: 0.10 and 0.12 are in one, of which half is right, 1.0 in the last.
  found = calibration_error(np.array([0.10, 0.12, 0.5, 1.0]), np.array([True, False, False, True]))
  assert found == pytest.approx(100 * (abs(1 - 0.22) + 0.5 + 0.0) / 4)


@pytest.mark.parametrize("slope, bias", [(1.0, 0.0), (0.4, 1.5), (2.5, -1.0)])
def test_a_known_distortion_of_log_odds_is_found(slope, bias):
  random = np.random.default_rng(0)
  sure = random.uniform(0.02, 0.98, 40_000)
  chance = 1 / (1 + np.exp(-(slope * np.log(sure / (1 - sure)) + bias)))
  correct = random.random(len(sure)) < chance
  gate, figures = fit_gate(sure, correct, 1.3, "probability")
  assert (gate.slope, gate.bias) == pytest.approx((slope, bias), abs=0.1)  # 3 standard errors
  np.testing.assert_allclose(gate.probability_correct(sure), chance, atol=0.02)
  assert figures["calibration_error_after"] < 1.5
  if slope != 1.0:
    assert figures["calibration_error_before"] > 5


def test_a_known_distortion_of_shares_is_found():
  random = np.random.default_rng(1)
  share = random.integers(0, 17, 40_000) / 16
  chance = 1 / (1 + np.exp(-(4 * share - 3)))
  gate, figures = fit_gate(share, random.random(len(share)) < chance, 1.3, "agreement")
  assert (gate.slope, gate.bias) == pytest.approx((4.0, -3.0), abs=0.1)
  assert figures["calibration_error_after"] < 1.5 < figures["calibration_error_before"]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_calibration_is_the_likeliest(measure):
  sure, first, _ = rows(3, ties=False)
  gate, _ = fit_gate(sure, first > 0, 1.3, measure)
  right, wrong = (first > 0).sum(), (first == 0).sum()
  targets = np.where(first > 0, (right + 1) / (right + 2), 1 / (wrong + 2))
  off = gate.probability_correct(sure) - targets
  scores = np.log(sure / (1 - sure)) if measure == "probability" else sure
  assert gate.slope > 0
  # The gradient of the likelihood to the bias and to the slope.
  assert (off.mean(), (off * scores).mean()) == pytest.approx((0, 0), abs=1e-6)


def test_surer_is_never_taken_for_less_likely_right():
  sure, first, _ = rows(4)
  gate, _ = fit_gate(sure, first == 0, 1.3, "probability")
  assert gate.slope == 0
  assert np.ptp(gate.probability_correct(sure)) == 0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("right", [True, False])
def test_rows_that_are_all_right_or_all_wrong(measure, right):
  gate, figures = fit_gate(SURE, np.full(5, right), 1.4, measure)
  expected = 6 / 7 if right else 1 / 7  # Platt's targets of five equal outcomes
  np.testing.assert_allclose(gate.probability_correct(SURE), expected, atol=1e-4)
  assert figures["compute"] == 1.2


def test_rows_that_the_confidence_tells_apart_without_an_error():
  gate, _ = fit_gate(SURE, SURE > 0.4, 1.4, "probability")
  chance = gate.probability_correct(np.array([0.0, 0.1, 0.5, 1.0]))
  assert np.all(np.diff(chance) > 0) and 0 < chance[0] < 0.5 < chance[2] and chance[3] <= 1
  assert math.isfinite(gate.slope) and math.isfinite(gate.bias)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_confidences_say_nothing(measure):
  correct = np.array([True, True, True, False])
  gate, figures = fit_gate(np.full(4, 1.0), correct, 1.5, measure)
  assert figures["compute"] == 1.0  # all or none, and all would be 2
  smoothed = (3 * 4 / 5 + 1 / 3) / 4
  np.testing.assert_allclose(gate.probability_correct(np.array([0.0, 0.3, 1.0])), smoothed)


def test_one_row():
  for budget, compute in ((1.0, 1), (1.9, 1), (2.0, 2)):
    gate, figures = fit_gate(np.array([0.4]), np.array([True]), budget, "margin")
    assert figures["compute"] == compute
    assert gate.probability_correct(np.array([0.9])) == pytest.approx(2 / 3)


# The curves


def test_the_curves_by_hand():
  curves = deferral_curves(SURE, FIRST, SECOND)
  gate, random, oracle = curves
  assert gate.compute.tolist() == [1, 1.2, 1.6, 1.8, 2]
  assert gate.accuracy.tolist() == [60, 80, 80, 80, 60]
  assert random.compute.tolist() == [1, 2] and random.accuracy.tolist() == [60, 60]
  assert oracle.compute.tolist() == [1, 1.4, 2]
  assert oracle.accuracy.tolist() == [60, 100, 100]
  assert (
    gate.accuracy_at(1.1),
    gate.accuracy_at(1.9),
    random.accuracy_at(1.5),
    oracle.accuracy_at(1.3),
  ) == pytest.approx((70, 70, 60, 90))
  # 0.2 of 70, 0.6 of 80, 0.2 of 70; all of 60; 0.4 of 80 and 0.6 of 100.
  assert (gate.area, random.area, oracle.area) == pytest.approx((76, 60, 92))


def test_a_second_pass_of_half_the_layers_costs_half():
  gate, figures = fit_gate(SURE, FIRST > 0, 1.4, "probability", 0.5)
  second = gate.needs_second_pass(SURE)
  assert second.tolist() == [False, True, True, True, True] and figures["compute"] == 1.4
  whole, half = (deferral_curves(SURE, FIRST, SECOND, cost).gate for cost in (1.0, 0.5))
  assert half.compute.tolist() == [1, 1.1, 1.3, 1.4, 1.5] and half.area == pytest.approx(whole.area)
  assert operating_point(second, FIRST, SECOND, 0.5)["compute"] == 1.4


@pytest.mark.parametrize("seed", range(20))
def test_laws_of_the_curves(seed):
  sure, first, second = rows(seed, ties=bool(seed % 2))
  gate, random, oracle = deferral_curves(sure, first, second)
  for line in (gate, random):
    assert (line.compute[0], line.compute[-1]) == (1, 2)
    assert (line.accuracy[0], line.accuracy[-1]) == (first.mean(), second.mean())
  assert oracle.accuracy[0] == first.mean()
  assert oracle.accuracy[-1] == np.maximum(first, second).mean()
  assert np.all(np.diff(oracle.accuracy) >= 0)
  for compute in np.linspace(1, 2, 41):
    best = oracle.accuracy_at(compute) + 1e-9
    assert best >= max(gate.accuracy_at(compute), random.accuracy_at(compute))
  assert oracle.area >= max(gate.area, random.area)
  assert random.area == pytest.approx((first.mean() + second.mean()) / 2)
  # The threshold's choice is a corner of the curve.
  chosen, figures = fit_gate(sure, first > 0, 1.4, "probability")
  reached = np.where(chosen.needs_second_pass(sure), second, first).mean()
  assert gate.accuracy_at(figures["compute"]) == pytest.approx(reached)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_changes_nothing(seed):
  data = rows(seed)
  order = np.random.default_rng(seed).permutation(len(data[0]))
  for line, other in zip(
    deferral_curves(*data), deferral_curves(*(a[order] for a in data)), strict=True
  ):
    np.testing.assert_array_equal(line, other)
  gate, figures = fit_gate(data[0], data[1] > 0, 1.3, "margin")
  other, again = fit_gate(data[0][order], data[1][order] > 0, 1.3, "margin")
  assert other.threshold == gate.threshold
  assert (other.slope, other.bias) == pytest.approx((gate.slope, gate.bias), abs=1e-5)
  assert again == pytest.approx(figures, abs=1e-3)


def test_tied_rows_are_the_mean_over_their_orders():
  sure, first, second = rows(7)
  draws = []
  for seed in range(400):
    broken = sure + np.random.default_rng(seed).random(len(sure)) * 1e-9
    draws.append(deferral_curves(broken / 2, first, second).gate.accuracy)
  grid = np.linspace(1, 2, len(sure) + 1)
  expected = np.interp(grid, *deferral_curves(sure, first, second).gate)
  np.testing.assert_allclose(np.mean(draws, 0), expected, atol=0.6)


def test_a_gate_that_knows_nothing_is_about_random():
  random = np.random.default_rng(5)
  first, second = 100.0 * (random.random((2, 20_000)) < [[0.4], [0.6]])
  curves = deferral_curves(random.random(20_000), first, second)
  assert curves.gate.area == pytest.approx(curves.random.area, abs=0.5)


def test_one_row_of_the_curves():
  curves = deferral_curves(np.array([0.3]), np.array([0.0]), np.array([100.0]))
  assert [line.area for line in curves] == [50, 50, 50]


@pytest.mark.parametrize("first, second", [([1.0], [1.0, 2.0]), ([1.0], [1.0]), ([], [])])
def test_scores_of_other_rows(first, second):
  with pytest.raises(ValueError, match="rows"):
    deferral_curves(np.array([0.5, 0.5]), np.array(first), np.array(second))


# The share of the gain


def gaining():
  """1000 rows of which 200 gain, 150 of them among the 300 least sure, and 50 lose at the top."""
  sure = np.arange(1000) / 1000
  first = np.where(sure >= 0.95, 100.0, 0.0)
  second = np.zeros(1000)
  second[:300:2] = 100.0
  second[300:350] = 100.0
  return sure, first, second


def test_the_share_of_the_gain_by_hand():
  sure, first, second = gaining()
  found = share_of_gain(sure, first, second, 1.3)
  assert all(type(value) is float for value in found.values())
  assert found["share_of_gain"] == pytest.approx(100.0)  # 150 of 200 - 50
  assert found["share_of_gain_low"] < 100 < found["share_of_gain_high"]
  assert found["resamples_without_gain"] == 0
  assert share_of_gain(sure, first, second, 1.15)["share_of_gain"] == pytest.approx(50.0)
  assert share_of_gain(sure, first, second, 1.5)["share_of_gain"] == pytest.approx(400 / 3)
  ends = [share_of_gain(sure, first, second, compute) for compute in (1.0, 2.0)]
  for found, share in zip(ends, (0.0, 100.0), strict=True):
    assert found == pytest.approx(
      {
        "share_of_gain": share,
        "share_of_gain_low": share,
        "share_of_gain_high": share,
        "resamples_without_gain": 0.0,
      }
    )


def test_the_interval_of_the_share_is_about_two_standard_errors():
  # No row loses: of 200 that gain, 150 are below the threshold, so the share is about binomial.
  sure, _, second = gaining()
  found = operating_point(sure < 0.3, np.zeros(1000), second)
  error = 100 * math.sqrt(0.75 * 0.25 / 200)
  assert found["share_of_gain"] == pytest.approx(75.0)
  assert found["share_of_gain_low"] == pytest.approx(75 - 1.96 * error, abs=1)
  assert found["share_of_gain_high"] == pytest.approx(75 + 1.96 * error, abs=1)


def test_the_point_of_a_gate_in_use():
  found = operating_point(np.array([False, False, True, False, True]), FIRST, SECOND)
  assert all(type(value) is float for value in found.values())
  assert (found["compute"], found["accuracy"]) == (1.4, 80.0)
  assert math.isnan(found["share_of_gain"])
  sure, first, second = gaining()
  at = operating_point(sure < 0.3, first, second)
  line = deferral_curves(sure, first, second).gate
  assert at["accuracy"] == pytest.approx(line.accuracy_at(at["compute"]))
  assert at["share_of_gain"] == pytest.approx(
    share_of_gain(sure, first, second, 1.3)["share_of_gain"]
  )


@pytest.mark.parametrize("second", [FIRST, SECOND, FIRST - 20])
def test_no_gain_has_no_share(second):
  found = share_of_gain(SURE, FIRST, second, 1.3)
  assert all(
    math.isnan(found[name]) for name in ("share_of_gain", "share_of_gain_low", "share_of_gain_high")
  )
  assert found["resamples_without_gain"] > 20


def test_a_gain_near_nothing_has_a_share_but_no_interval():
  first, second = np.zeros(100), np.zeros(100)
  second[:3], first[-2:] = 100.0, 100.0  # a gain of one row in a hundred
  found = share_of_gain(np.arange(100) / 100, first, second, 1.5)
  assert found["share_of_gain"] == pytest.approx(300.0)
  assert math.isnan(found["share_of_gain_low"]) and math.isnan(found["share_of_gain_high"])
  assert 5 < found["resamples_without_gain"] < 60


def test_a_surer_gain_narrows_the_interval():
  widths = []
  for times in (1, 4):
    found = share_of_gain(*(np.repeat(a, times) for a in gaining()), 1.3)
    widths.append(found["share_of_gain_high"] - found["share_of_gain_low"])
  assert widths[0] > 1.6 * widths[1]


def test_one_row_that_gains():
  found = operating_point(np.array([True]), np.array([0.0]), np.array([100.0]))
  assert (found["share_of_gain_low"], found["share_of_gain"], found["share_of_gain_high"]) == (
    100,
    100,
    100,
  )


def test_choices_of_other_rows_and_a_compute_that_is_none():
  with pytest.raises(ValueError, match="choices"):
    operating_point(np.array([True]), FIRST, SECOND)
  with pytest.raises(UserError, match="compute_budget"):
    share_of_gain(SURE, FIRST, SECOND, 2.5)
