"""The gate of a cascade: rows of which the first pass is not confident get a second pass.

Compute is counted in whole passes of the LM a row: 1 if no row gets the second pass, and if all do
1 + `second_cost`, what a second one costs (it may run some of the layers alone). `fit_gate` picks
the threshold for a compute budget and calibrates the confidence, both on validation rows;
`deferral_curves` gives accuracy against compute for this gate, a random one and an oracle. To let
the cheap model alone answer confident rows is a cascade (Viola and Jones 2001; of language models
FrugalGPT, Chen et al. 2023).

Confidences are numbers from 0 to 1:

  probability  of the whole answered sequence, its end token included
  margin       the difference between the shares (or probabilities) of the two best answers
  agreement    the share of the samples that gave the most frequent answer

Calibration is Platt's (1999): the probability that pass one is correct is the logistic function of
slope times score plus bias, fitted by maximum likelihood. The slope is one over a temperature (Guo
et al. 2017), but a temperature alone is not enough: it keeps 0.5 fixed, while an answer of
probability 0.3 may be correct more often than not, as the rest is spread over its other spellings
and over many worse answers; nor is a margin of 0 a probability of 0. The score of a probability is
its log-odds, so that a calibrated one stays unchanged; shares, which do reach 0 and 1, are
unchanged scores. Targets are smoothed as Platt does, so that rows that are all correct, all wrong
or perfectly separated give finite parameters. The slope is never negative: if more confident rows
are wrong more often, it is 0 and every row has the same probability. Imports no jax.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Num, Real

from frozen_jax.core.errors import UserError
from frozen_jax.evaluation.intervals import RESAMPLES

MEASURES = ("probability", "margin", "agreement")

_ALWAYS = math.nextafter(1.0, 2.0)  # above every confidence, and JSON has it, unlike infinity
_CLIP = 1e-6  # least distance of a probability from 0 and 1: about the resolution of float32 at 1
_ROUNDING = 1e-3  # by how much a confidence may be outside [0, 1]; more is an error
_BINS = 15  # of the calibration error, as Guo et al. 2017
_MIN_GAIN = 1e-9  # percent; a gain below is rounding


@dataclasses.dataclass(frozen=True)
class Gate:
  """Which rows need the second pass.

  measure: which of MEASURES the confidences are. threshold: rows less confident than this need the
  second pass. slope, bias: of the calibration. `Gate(**dataclasses.asdict(gate))`, also by way of
  JSON, gives an equal gate. Raises UserError for an unknown measure.
  """

  measure: str
  threshold: float
  slope: float
  bias: float

  def __post_init__(self) -> None:
    if self.measure not in MEASURES:
      raise UserError(
        f"confidence {self.measure!r} is not known; give one of {', '.join(MEASURES)}"
      )

  def needs_second_pass(self, confidences: Real[np.ndarray, "..."]) -> Bool[np.ndarray, " N"]:
    """Whether each row needs the second pass.

    Raises ValueError for confidences other than numbers [N] from 0 to 1.
    """
    return _checked(confidences) < self.threshold

  def probability_correct(self, confidences: Real[np.ndarray, "..."]) -> Float64[np.ndarray, " N"]:
    """The calibrated probability that pass one is correct; errors as `needs_second_pass`."""
    from scipy.special import expit

    inputs = _calibration_inputs(self.measure, _checked(confidences))
    return expit(self.slope * inputs + self.bias)


def check_compute_budget(budget: float, name: str = "compute_budget") -> None:
  """UserError for a compute budget outside [1, 2]; name: what the message calls it."""
  if not 1 <= budget <= 2:
    raise UserError(f"{name} is {budget}; give passes a row from 1 (never a second) to 2 (always)")


def fit_gate(
  confidences: Real[np.ndarray, "..."],
  first_correct: Bool[np.ndarray, "..."],
  budget: float,
  measure: str,
  second_cost: float = 1.0,
) -> tuple[Gate, dict[str, float | int]]:
  """The gate for a budget, and how it does on the validation rows that it is fitted on.

  As many of the least confident rows as the budget allows get the second pass; of equally confident
  rows all or none, so that the budget is never exceeded on these rows. It is spent whether or not
  the second pass gains anything: which of few rows it gains on is mostly chance.

  Args:
    confidences: [N], from 0 to 1, of pass one's answers.
    first_correct: [N], whether these are correct.
    budget: mean compute in passes, 1 (no row gets the second) to 2; from 1 + second_cost on every
      row gets it, of any data.
    measure: which of MEASURES the confidences are.
    second_cost: of a second pass, in passes.

  Returns:
    the gate, and `rows`, `compute` (mean passes a row) and `calibration_error_before` and `_after`,
    both in percent (`calibration_error`; "before": of the confidences themselves).

  Raises UserError for a budget outside [1, 2], an unknown measure or no rows at all; ValueError for
  confidences as `Gate.needs_second_pass`, and for other than one outcome a row.
  """
  check_compute_budget(budget)
  confidences, correct = _checked(confidences), np.asarray(first_correct, bool)
  if correct.shape != confidences.shape:
    raise ValueError(f"outcomes {correct.shape} of confidences {confidences.shape}")
  if not confidences.size:
    raise UserError("the gate is fitted on validation rows and there are none; name data with some")
  gate = Gate(measure, _threshold(confidences, (budget - 1) / second_cost), 0.0, 0.0)
  slope, bias = _platt_scaling(_calibration_inputs(measure, confidences), correct)
  gate = dataclasses.replace(gate, slope=slope, bias=bias)
  return gate, {
    "rows": len(confidences),
    "compute": 1.0 + second_cost * float(gate.needs_second_pass(confidences).mean()),
    "calibration_error_before": calibration_error(confidences, correct),
    "calibration_error_after": calibration_error(gate.probability_correct(confidences), correct),
  }


def calibration_error(
  probabilities: Real[np.ndarray, " N"], correct: Num[np.ndarray, " N"] | Bool[np.ndarray, " N"]
) -> float:
  """Expected calibration error in percent, over 15 bins of equal width (Guo et al. 2017).

  probabilities: from 0 to 1, of being correct. correct: 0 or 1.
  """
  bins = np.minimum((np.asarray(probabilities) * _BINS).astype(int), _BINS - 1)
  errors = np.asarray(correct, np.float64) - probabilities
  by_bin = np.bincount(bins, weights=errors, minlength=_BINS)
  return 100.0 * float(np.abs(by_bin).sum()) / len(bins)


def _checked(confidences: np.ndarray) -> Float64[np.ndarray, " N"]:
  values = np.asarray(confidences, np.float64)
  if values.ndim != 1 or not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
    raise ValueError(f"confidences {values.shape} are not numbers [N] from 0 to 1")
  return np.clip(values, 0.0, 1.0)


def _threshold(confidences: np.ndarray, share: float) -> float:
  """Below which at most this share of the confidences is."""
  if share <= 0:
    return 0.0
  count = len(confidences)
  max_second = math.floor(share * count + 1e-9)  # 0.4 of 5 rows is 1.9999999999999998
  return float(np.sort(confidences)[max_second]) if max_second < count else _ALWAYS


def _calibration_inputs(measure: str, confidences: np.ndarray) -> np.ndarray:
  """The scores that the logistic function of the calibration takes."""
  from scipy.special import logit  # slow to import

  if measure != "probability":
    return confidences
  return logit(np.clip(confidences, _CLIP, 1 - _CLIP))


def _platt_scaling(scores: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
  """Slope and bias by Platt's method: maximum likelihood, smoothed targets, a slope >= 0."""
  from scipy.optimize import minimize
  from scipy.special import expit, logit

  right, wrong = correct.sum(), (~correct).sum()
  targets = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
  mean, std = scores.mean(), scores.std()
  if std < _CLIP:  # all confidences are equal, so they carry no information
    return 0.0, float(logit(targets.mean()))
  inputs = (scores - mean) / std

  def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
    logits = values[0] * inputs + values[1]
    errors = expit(logits) - targets
    gradient = np.array([np.mean(errors * inputs), np.mean(errors)])
    return float(np.mean(np.logaddexp(0, logits) - targets * logits)), gradient

  slope, bias = minimize(
    loss,
    np.array([1.0, logit(targets.mean())]),
    jac=True,
    method="L-BFGS-B",
    bounds=[(0, None), (None, None)],
    options={"ftol": 1e-14, "gtol": 1e-9},
  ).x
  return float(slope / std), float(bias - slope * mean / std)


class Curve(NamedTuple):
  """Points of a curve: mean compute in passes, from 1 on, and accuracy in percent."""

  compute: Float64[np.ndarray, " points"]
  accuracy: Float64[np.ndarray, " points"]

  @property
  def area(self) -> float:
    """The area under the curve by the compute that it spans: its mean accuracy in percent."""
    span = float(self.compute[-1] - self.compute[0])
    return float(np.trapezoid(self.accuracy, self.compute)) / span

  def accuracy_at(self, compute: float) -> float:
    """Accuracy in percent at a mean compute."""
    return float(np.interp(compute, self.compute, self.accuracy))


class Curves(NamedTuple):
  """Accuracy against compute by three ways to choose which rows get the second pass.

  gate: the least confident first. random: any. oracle: those with the largest gain first, and none
  with a loss, so that at its end every row has the better of its two answers.
  """

  gate: Curve
  random: Curve
  oracle: Curve


def deferral_curves(
  confidences: Real[np.ndarray, "..."],
  first: Num[np.ndarray, "..."],
  second: Num[np.ndarray, "..."],
  second_cost: float = 1.0,
) -> Curves:
  """The deferral curves of test rows.

  Equally confident rows are one step, along which the curve is the mean over all their orders. So
  it does not depend on the order of the rows.

  Args:
    confidences: [N], from 0 to 1, of pass one's answers.
    first, second: [N], each row's score in percent by pass one and by pass two.
    second_cost: of a second pass, in passes.

  Raises ValueError for confidences as `Gate.needs_second_pass`, for other than one score of each a
  row, and for no rows.
  """
  first, gain = _gains(first, second)
  gate = _curve(*_groups(_checked(confidences), len(first)), first, gain, second_cost)
  best = np.maximum(gain, 0.0)
  return Curves(
    gate,
    Curve(gate.compute[[0, -1]], gate.accuracy[[0, -1]]),
    _curve(*_groups(-best, len(first)), first, best, second_cost),
  )


def share_of_gain(
  confidences: Real[np.ndarray, "..."],
  first: Num[np.ndarray, "..."],
  second: Num[np.ndarray, "..."],
  compute: float,
) -> dict[str, float]:
  """The share of the second pass's gain that the gate's curve has at a mean compute.

  Arguments as `deferral_curves`, whose second pass is a whole one; compute from 1 to 2. Returns
  percents:

    share_of_gain         of the gain of giving every row the second pass; nan without a gain
    share_of_gain_low, share_of_gain_high
                          its 95% interval by the paired bootstrap: each resample of the rows has a
                          curve of its own
    resamples_without_gain
                          the resamples in which the second pass gains nothing

  The share of a gain near 0 can be anything. Resamples without a gain have none, and count as below
  the lower bound and as above the upper one: the interval widens with them, and if they are more
  than 2.5%, so that the gain itself is not established, both bounds are nan. Shares above 100 are
  possible: a gate may leave out rows where the second pass loses. Raises UserError for a compute
  outside [1, 2].
  """
  check_compute_budget(compute)
  first, gain = _gains(first, second)
  ranks, count = _groups(_checked(confidences), len(first))

  def gained(rows: np.ndarray) -> tuple[float, float]:
    curve = _curve(ranks[rows], count, first[rows], gain[rows])
    return curve.accuracy_at(compute) - curve.accuracy[0], curve.accuracy[-1] - curve.accuracy[0]

  return _bootstrap_share(gained, len(first))


def operating_point(
  second_pass: Bool[np.ndarray, "..."],
  first: Num[np.ndarray, "..."],
  second: Num[np.ndarray, "..."],
  second_cost: float = 1.0,
) -> dict[str, float]:
  """Compute and accuracy of a gate on test rows, given what `Gate.needs_second_pass` chose of them.

  Arguments and errors as `deferral_curves`, with second_pass: [N]. Returns `compute` (mean passes a
  row), `accuracy` (percent) and the values of `share_of_gain`; for their interval the compute
  varies with the rows of a resample.
  """
  first, gain = _gains(first, second)
  second_pass = np.asarray(second_pass, bool)
  if second_pass.shape != first.shape:
    raise ValueError(f"{second_pass.shape} choices for {first.shape} rows")
  gate_gain = np.where(second_pass, gain, 0.0)

  def gained(rows: np.ndarray) -> tuple[float, float]:
    return float(gate_gain[rows].mean()), float(gain[rows].mean())

  return {
    "compute": 1.0 + second_cost * float(second_pass.mean()),
    "accuracy": float((first.sum() + gate_gain.sum()) / len(first)),
    **_bootstrap_share(gained, len(first)),
  }


def _gains(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape or first.ndim != 1 or not first.size:
    raise ValueError(f"scores {first.shape} and {second.shape} of the same rows")
  return first, second - first


def _groups(keys: np.ndarray, rows: int) -> tuple[Int[np.ndarray, " N"], int]:
  """The index of each row's group of equal keys, in rising order, and the number of groups."""
  if len(keys) != rows:
    raise ValueError(f"{len(keys)} confidences for {rows} rows")
  groups, ranks = np.unique(keys, return_inverse=True)
  return ranks, len(groups)


def _curve(
  ranks: np.ndarray, count: int, first: np.ndarray, gain: np.ndarray, second_cost: float = 1.0
) -> Curve:
  """The curve of rows that get the second pass group by group.

  Sums are divided last, so that scores of 0 and 100 give both ends exactly.
  """
  second_passes = np.cumsum(np.bincount(ranks, minlength=count))
  gained = np.cumsum(np.bincount(ranks, weights=gain, minlength=count))
  compute = 1.0 + second_cost * np.append(0, second_passes) / len(ranks)
  return Curve(compute, (first.sum() + np.append(0.0, gained)) / len(ranks))


def _bootstrap_share(
  gained: Callable[[np.ndarray], tuple[float, float]], count: int
) -> dict[str, float]:
  """The values of `share_of_gain`.

  gained: indices of rows -> the gain of the gate and that of giving every row the second pass.
  """
  gate_gain, full_gain = gained(np.arange(count))
  random = np.random.default_rng(0)
  resamples = np.array([gained(random.integers(count, size=count)) for _ in range(RESAMPLES)])
  gains = resamples[:, 1] > _MIN_GAIN
  shares = 100.0 * resamples[:, 0] / np.where(gains, resamples[:, 1], 1.0)
  low = float(np.quantile(np.where(gains, shares, -np.inf), 0.025, method="lower"))
  high = float(np.quantile(np.where(gains, shares, np.inf), 0.975, method="higher"))
  bounded = full_gain > _MIN_GAIN and math.isfinite(low) and math.isfinite(high)
  return {
    "share_of_gain": float(100.0 * gate_gain / full_gain) if full_gain > _MIN_GAIN else math.nan,
    "share_of_gain_low": low if bounded else math.nan,
    "share_of_gain_high": high if bounded else math.nan,
    "resamples_without_gain": 100.0 * float((~gains).mean()),
  }
