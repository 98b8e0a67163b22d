"""How far a mean over test rows would move with other rows: bootstrap intervals.

Rows are resampled with replacement (Efron 1979); the interval has the middle 95% of the means.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num

RESAMPLES = 2000


def means_with_intervals(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """The mean of each score over the rows, and `NAME_low` and `NAME_high` around it.

  All rows have the same scores, and there is at least one. The resamples are the same at each call.
  """
  means: dict[str, float] = {}
  for name in rows[0]:
    values = np.array([row[name] for row in rows], np.float64)
    low, high = bootstrap_interval(values)
    means |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
  return means


def paired_difference(
  first: Num[np.ndarray, "..."], second: Num[np.ndarray, "..."]
) -> dict[str, float]:
  """How much higher the mean of `second` is than that of `first`, both [N] of the same rows.

  Returns `difference`, `difference_low` and `difference_high` in the unit of the values (percent).
  The differences of rows are resampled, so what makes a row hard for both widens neither bound
  (paired bootstrap). Raises ValueError for other than one value of each a row.
  """
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if first.shape != second.shape or first.ndim != 1 or not first.size:
    raise ValueError(f"values {first.shape} and {second.shape} of the same rows")
  return means_with_intervals([{"difference": value} for value in (second - first).tolist()])


def values_per_unit(
  sums: Num[np.ndarray, " N"], units: Num[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
  """Values of rows whose mean is the sum of `sums` by that of `units`, and varies as that does.

  So a loss per target, which is such a ratio, has the intervals of a mean over rows (the ratio's
  linearisation, Cochran 1977). units: above 0.
  """
  ratio = sums.sum() / units.sum()
  return ratio + (sums - ratio * units) / units.mean()


def bootstrap_interval(values: Num[np.ndarray, " N"]) -> tuple[float, float]:
  """The 95% bootstrap interval of the mean of values; that of equal values is their value."""
  from scipy.stats import bootstrap  # slow to import

  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  result = bootstrap(
    (values,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=0
  )
  return float(result.confidence_interval.low), float(result.confidence_interval.high)
