"""From scores of single rows to a table by data set and prompt template.

Every template has the same weight within its data set and every data set within the whole, however
many rows they have, as T0 is reported (Sanh et al. 2022): over the templates of a data set the
mean, and the median, which a single bad template does not change.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

MAIN_SCORES = ("accuracy", "rouge_l")


class RowScores(NamedTuple):
  """Scores of one row in percent; its data set, and its template ("" if it has none)."""

  dataset: str
  template: str
  scores: Mapping[str, float]


def scores_by_task(scored_rows: Iterable[RowScores]) -> dict[str, Any]:
  """The table, ready for JSON; data sets and templates are in alphabetical order.

    {"rows": how many, "mean": scores, "median": scores,
     "datasets": {name: {"rows", "mean": scores, "median": scores,
                         "templates": {name: {"rows", **scores}}}}}

  A template's scores are means over its rows; those of a data set the mean and the median over its
  templates; those at the top the means over data sets of each of the two. There is one more score
  than the rows have, `score`, in percent: a row's accuracy if it has choices, its ROUGE-L
  otherwise. A score that only some rows have is averaged over those. Raises ValueError for a row
  with neither accuracy nor ROUGE-L.
  """
  rows: dict[str, dict[str, list[dict[str, float]]]] = {}
  for dataset, template, scores in scored_rows:
    row = {"score": _main_score(dataset, scores)} | dict(scores)
    rows.setdefault(dataset, {}).setdefault(template, []).append(row)
  datasets = {name: _dataset(templates) for name, templates in sorted(rows.items())}
  return {
    "rows": sum(table["rows"] for table in datasets.values()),
    "mean": _averages([table["mean"] for table in datasets.values()], statistics.fmean),
    "median": _averages([table["median"] for table in datasets.values()], statistics.fmean),
    "datasets": datasets,
  }


def _main_score(dataset: str, scores: Mapping[str, float]) -> float:
  for name in MAIN_SCORES:
    if name in scores:
      return scores[name]
  raise ValueError(f"a row of {dataset} has none of {', '.join(MAIN_SCORES)}, but {sorted(scores)}")


def _dataset(templates: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
  means = {name: _averages(rows, statistics.fmean) for name, rows in sorted(templates.items())}
  return {
    "rows": sum(map(len, templates.values())),
    "mean": _averages(list(means.values()), statistics.fmean),
    "median": _averages(list(means.values()), statistics.median),
    "templates": {name: {"rows": len(templates[name])} | mean for name, mean in means.items()},
  }


def _averages(
  each: list[dict[str, float]], average: Callable[[list[float]], float]
) -> dict[str, float]:
  """The average of each score over those that have it, in the order of first occurrence."""
  names = dict.fromkeys(name for scores in each for name in scores)
  return {name: average([scores[name] for scores in each if name in scores]) for name in names}
