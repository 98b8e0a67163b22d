"""The gate: which rows take the second of two passes, by how sure the first one is of its answer.

Compute is counted in passes a row: 1 where no row takes the second pass, 2 where all do. `fit`
picks the threshold for a compute budget and calibrates the confidence, both on validation rows;
`curve` sets accuracy against compute for this gate, a random one and an oracle. To leave the sure
rows to the cheap system is a cascade (Viola and Jones 2001; of language models FrugalGPT, Chen et
al. 2023), and the curve is its deferral curve.

Confidences are numbers from 0 to 1:

  probability  of the whole sequence that was answered, its end token included
  margin       the difference between the shares (or probabilities) of the two best answers
  agreement    the share of the samples that gave the most frequent answer

Calibration is Platt's (1999): the chance that pass one is right is the logistic function of slope
times score plus bias, fitted by likelihood. The slope is one over a temperature (Guo et al. 2017),
and a temperature alone would not do: it turns about an even chance, while an answer of probability
0.3 may well be right more often than not, the rest being spread over its other spellings and over
many worse answers; nor is a margin of 0 a chance of 0. The score of a probability is its log-odds,
so that one already calibrated stays as it is; shares, which do reach 0 and 1, are their own score.
Targets are smoothed as Platt does, so that rows that are all right, all wrong or told apart without
an error give finite parameters. The slope is never negative: where surer rows are wrong more often,
it is 0 and every row has the same chance.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from frozen_jax.core.errors import UserError

MEASURES = ("probability", "margin", "agreement")

_ALWAYS = math.nextafter(1.0, 2.0)  # above every confidence, and JSON has it, unlike infinity
_CLIP = 1e-6  # a probability's distance from 0 and 1 at least: about what float32 tells from 1
_ROUNDING = 1e-3  # by how much a confidence may be off [0, 1] without being another quantity
_BINS = 15  # of the calibration error, as Guo et al. 2017
_SMALLEST = 1e-9  # percent; a gain below is rounding
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Gate:
  """Which rows need the second pass.

  measure: which of MEASURES it reads. threshold: rows less confident than this take the second
  pass. slope, bias: of the calibration. `dataclasses.asdict(gate)` is ready for JSON and `Gate`
  takes it back as keywords. Raises UserError for a measure that is not known.
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

  def takes(self, confidences: np.ndarray) -> np.ndarray:
    """bool [N]: whether each row needs the second pass.

    Raises ValueError for confidences other than numbers [N] from 0 to 1.
    """
    return _checked(confidences) < self.threshold

  def probability(self, confidences: np.ndarray) -> np.ndarray:
    """float64 [N]: the calibrated chance that pass one is right; errors as `takes`."""
    from scipy.special import expit

    return expit(self.slope * _scores(self.measure, _checked(confidences)) + self.bias)


def check_budget(budget: float) -> None:
  """UserError for a compute budget that no gate can have."""
  if not 1 <= budget <= 2:
    raise UserError(
      f"compute_budget is {budget}; give passes a row from 1 (never a second) to 2 (always)"
    )


def fit(
  confidences: np.ndarray, first_correct: np.ndarray, budget: float, measure: str
) -> tuple[Gate, dict[str, float]]:
  """The gate for a budget, and how it does on the validation rows that it is fitted on.

  As many of the least sure rows as the budget pays for take the second pass; of equally sure rows
  all or none, so that the budget is never exceeded on these rows. It is spent whether or not the
  second pass gains anything: which of few rows it gains on is mostly chance.

  Args:
    confidences: [N], from 0 to 1, of pass one's answers.
    first_correct: bool [N], whether they are right.
    budget: mean compute in passes, 1 (no row takes the second) to 2 (every row, of any data).
    measure: which of MEASURES the confidences are.

  Returns:
    the gate, and `rows`, `compute` (mean passes a row) and `calibration_error_before` and `_after`,
    both in percent (`calibration_error`; "before" takes the confidence itself for the chance).

  Raises UserError for a budget outside [1, 2], an unknown measure or no rows at all; ValueError for
  confidences as `Gate.takes`, and for other than one outcome a row.
  """
  check_budget(budget)
  sure, correct = _checked(confidences), np.asarray(first_correct, bool)
  if correct.shape != sure.shape:
    raise ValueError(f"outcomes {correct.shape} of confidences {sure.shape}")
  if not sure.size:
    raise UserError("the gate is fitted on validation rows and there are none; name data with some")
  gate = Gate(measure, _threshold(sure, budget), 0.0, 0.0)
  slope, bias = _calibrated(_scores(measure, sure), correct)
  gate = dataclasses.replace(gate, slope=slope, bias=bias)
  return gate, {
    "rows": len(sure),
    "compute": 1.0 + float(gate.takes(sure).mean()),
    "calibration_error_before": calibration_error(sure, correct),
    "calibration_error_after": calibration_error(gate.probability(sure), correct),
  }


def calibration_error(chances: np.ndarray, correct: np.ndarray) -> float:
  """Expected calibration error in percent, over 15 bins of equal width (Guo et al. 2017).

  chances: [N], from 0 to 1, of being right. correct: [N], 0 or 1.
  """
  bins = np.minimum((np.asarray(chances) * _BINS).astype(int), _BINS - 1)
  off = np.bincount(bins, weights=np.asarray(correct, np.float64) - chances, minlength=_BINS)
  return 100.0 * float(np.abs(off).sum()) / len(bins)


def _checked(confidences: np.ndarray) -> np.ndarray:
  sure = np.asarray(confidences, np.float64)
  if sure.ndim != 1 or not ((sure >= -_ROUNDING) & (sure <= 1 + _ROUNDING)).all():
    raise ValueError(f"confidences {sure.shape} are not numbers [N] from 0 to 1")
  return np.clip(sure, 0.0, 1.0)


def _threshold(sure: np.ndarray, budget: float) -> float:
  if budget == 1:
    return 0.0
  most = math.floor((budget - 1) * len(sure) + 1e-9)  # 0.4 of 5 rows is 1.9999999999999998
  return float(np.sort(sure)[most]) if most < len(sure) else _ALWAYS


def _scores(measure: str, sure: np.ndarray) -> np.ndarray:
  """What the logistic function of the calibration reads of confidences."""
  from scipy.special import logit  # slow to import, and needed by gates alone

  return logit(np.clip(sure, _CLIP, 1 - _CLIP)) if measure == "probability" else sure


def _calibrated(scores: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
  """Slope and bias of Platt's method: the likeliest with smoothed targets and a slope >= 0."""
  from scipy.optimize import minimize
  from scipy.special import expit, logit

  right, wrong = correct.sum(), (~correct).sum()
  targets = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
  middle, width = scores.mean(), scores.std()
  if width < _CLIP:  # all confidences are equal: they say nothing, whatever comes later
    return 0.0, float(logit(targets.mean()))
  inputs = (scores - middle) / width

  def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
    logits = values[0] * inputs + values[1]
    off = expit(logits) - targets
    return float(np.mean(np.logaddexp(0, logits) - targets * logits)), np.array(
      [np.mean(off * inputs), np.mean(off)]
    )

  found = minimize(
    loss,
    np.array([1.0, logit(targets.mean())]),
    jac=True,
    method="L-BFGS-B",
    bounds=[(0, None), (None, None)],
    options={"ftol": 1e-14, "gtol": 1e-9},
  ).x
  return float(found[0] / width), float(found[1] - found[0] * middle / width)


class Line(NamedTuple):
  """Corners of a curve: mean compute [P] in passes, from 1 to 2, and accuracy [P] in percent."""

  compute: np.ndarray
  accuracy: np.ndarray

  @property
  def area(self) -> float:
    """The area under the curve, which is its mean accuracy in percent: compute spans 1."""
    return float(np.trapezoid(self.accuracy, self.compute))

  def at(self, compute: float) -> float:
    """Accuracy in percent at a mean compute."""
    return float(np.interp(compute, self.compute, self.accuracy))


class Curves(NamedTuple):
  """Accuracy against compute by three ways to choose which rows take the second pass.

  gate: the least sure first. random: any. oracle: those where it gains the most first, and none
  where it loses, so that at 2 every row has the better of its two answers.
  """

  gate: Line
  random: Line
  oracle: Line


def curve(confidence: np.ndarray, first: np.ndarray, second: np.ndarray) -> Curves:
  """The curves of test rows.

  Equally sure rows are one step, and the line along it is the mean over every order of them. So the
  curve does not depend on the order of the rows.

  Args:
    confidence: [N], from 0 to 1, of pass one's answers.
    first, second: [N], each row's score in percent by pass one and by pass two.

  Raises ValueError for confidences as `Gate.takes`, for other than one score of each a row, and
  for no rows.
  """
  first, gain = _gains(first, second)
  gate = _line(*_groups(_checked(confidence), len(first)), first, gain)
  best = np.maximum(gain, 0.0)
  return Curves(
    gate,
    Line(gate.compute[[0, -1]], gate.accuracy[[0, -1]]),
    _line(*_groups(-best, len(first)), first, best),
  )


def kept(
  confidence: np.ndarray, first: np.ndarray, second: np.ndarray, compute: float
) -> dict[str, float]:
  """The share of the second pass's gain that the gate's curve has at a mean compute.

  Arguments as `curve`; compute from 1 to 2. Returns percents:

    kept                 of the gain of giving every row the second pass; nan without a gain
    kept_low, kept_high  its 95% interval by the paired bootstrap, in which the curve is drawn anew
                         of every draw of rows
    without_gain         the draws in which the second pass gains nothing

  A share of a gain near 0 can be anything. Draws without a gain have none, and count as below the
  lower bound and as above the upper one: the interval widens with them, and beyond 2.5% of them,
  where the gain itself is not established, both bounds are nan. Shares above 100 are real: a gate
  may leave out rows where the second pass loses. Raises UserError for a compute outside [1, 2].
  """
  check_budget(compute)
  first, gain = _gains(first, second)
  ranks, count = _groups(_checked(confidence), len(first))

  def gained(rows: np.ndarray) -> tuple[float, float]:
    line = _line(ranks[rows], count, first[rows], gain[rows])
    return line.at(compute) - line.accuracy[0], line.accuracy[-1] - line.accuracy[0]

  return _share(gained, len(first))


def point(takes: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
  """Where a gate stands that is used as it is: what `Gate.takes` has chosen of test rows.

  Arguments and errors as `curve`, with takes: bool [N]. Returns `compute` (mean passes a row),
  `accuracy` (percent) and the figures of `kept`, whose interval here has the compute vary with the
  rows that are drawn.
  """
  first, gain = _gains(first, second)
  takes = np.asarray(takes, bool)
  if takes.shape != first.shape:
    raise ValueError(f"{takes.shape} choices for {first.shape} rows")
  taken = np.where(takes, gain, 0.0)
  return {
    "compute": 1.0 + float(takes.mean()),
    "accuracy": float((first.sum() + taken.sum()) / len(first)),
    **_share(lambda rows: (float(taken[rows].mean()), float(gain[rows].mean())), len(first)),
  }


def _gains(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape or first.ndim != 1 or not first.size:
    raise ValueError(f"scores {first.shape} and {second.shape} of the same rows")
  return first, second - first


def _groups(keys: np.ndarray, rows: int) -> tuple[np.ndarray, int]:
  """Of each row which group of equals it passes over with, in rising order, and how many there
  are."""
  if len(keys) != rows:
    raise ValueError(f"{len(keys)} confidences for {rows} rows")
  groups, ranks = np.unique(keys, return_inverse=True)
  return ranks, len(groups)


def _line(ranks: np.ndarray, count: int, first: np.ndarray, gain: np.ndarray) -> Line:
  """The curve of rows that pass over group by group. Sums are divided last, so that scores of 0 and
  100 give both ends exactly."""
  passed = np.cumsum(np.bincount(ranks, minlength=count))
  gained = np.cumsum(np.bincount(ranks, weights=gain, minlength=count))
  return Line(
    1.0 + np.append(0, passed) / len(ranks), (first.sum() + np.append(0.0, gained)) / len(ranks)
  )


def _share(gained: Callable[[np.ndarray], tuple[float, float]], count: int) -> dict[str, float]:
  """The figures of `kept`; gained: of the rows that were drawn, what the gate gains and what the
  second pass does."""
  part, full = gained(np.arange(count))
  random = np.random.default_rng(0)
  drawn = np.array([gained(random.integers(count, size=count)) for _ in range(_RESAMPLES)])
  some = drawn[:, 1] > _SMALLEST
  shares = 100.0 * drawn[:, 0] / np.where(some, drawn[:, 1], 1.0)
  low = float(np.quantile(np.where(some, shares, -np.inf), 0.025, method="lower"))
  high = float(np.quantile(np.where(some, shares, np.inf), 0.975, method="higher"))
  bounded = full > _SMALLEST and math.isfinite(low) and math.isfinite(high)
  return {
    "kept": float(100.0 * part / full) if full > _SMALLEST else math.nan,
    "kept_low": low if bounded else math.nan,
    "kept_high": high if bounded else math.nan,
    "without_gain": 100.0 * float((~some).mean()),
  }


def draw(path: pathlib.Path, curves: Curves, chosen: Mapping[str, float]) -> None:
  """Saves a plot of the curves; chosen: `compute` and `accuracy` of the gate in use (`point`)."""
  from matplotlib.figure import Figure  # slow to import, and needed here alone

  figure = Figure(figsize=(4.8, 4.0), layout="constrained")
  axis = figure.subplots()
  for (name, line), style in zip(curves._asdict().items(), ("-", "--", ":"), strict=True):
    axis.plot(line.compute, line.accuracy, style, label=f"{name} (area {line.area:.1f})")
  axis.plot(chosen["compute"], chosen["accuracy"], "ko", label=f"chosen ({chosen['compute']:.2f})")
  axis.set(xlabel="mean compute (passes)", ylabel="accuracy (%)", xlim=(0.97, 2.03))
  figure.legend(loc="outside upper center", ncols=2)  # the curves may be anywhere within the axes
  figure.savefig(path, dpi=100)
