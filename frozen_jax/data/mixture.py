"""The order of training examples over several data sets, and samples that represent them.

Mixing is by data set, as in T5 and T0 (Raffel et al. 2020, section 3.5.2; Sanh et al. 2022): each
data set has a rate, and is repeated in epochs, each shuffled anew. Grain's mixture takes from them
in fixed proportions: every stretch of the order has each data set at its rate, any position is
found without those before it, and no state is kept.
"""

from collections.abc import Iterable

import grain
import numpy as np

from frozen_jax.core.errors import UserError
from frozen_jax.core.seeds import seed32
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.data.sources import Source

_ENDLESS = 2**48  # rows of each data set


def mixing_rates(sizes: np.ndarray, mixture: MixtureSettings) -> np.ndarray:
  """float64 [N], summing to 1: the share of each of N data sets in the mixture, by its rows."""
  rates = np.asarray(sizes, np.float64)
  if mixture.sampling:
    rates = np.minimum(rates, mixture.cap or np.inf)
  if mixture.sampling == "temperature":
    rates = (rates / rates.max()) ** (1 / mixture.temperature)
  return rates / rates.sum()


def shuffled_order(
  count: int, dataset_index: np.ndarray | None, mixture: MixtureSettings, seed: int
) -> grain.MapDataset:
  """An endless random order of the indices 0 .. count - 1, another one in each epoch.

  `dataset_index` int [count]: the data set of each example. If several data sets are mixed, each
  has its own epochs; else an epoch is one of all examples.
  """
  if not mixture.sampling or dataset_index is None or len(np.unique(dataset_index)) == 1:
    return grain.MapDataset.range(count).seed(seed32(seed)).shuffle().repeat()
  datasets, sizes = np.unique(dataset_index, return_counts=True)
  parts = []
  for dataset in datasets.tolist():
    # A seed for each, else data sets of equal size would have the same order.
    part_seed = int(np.random.SeedSequence([seed32(seed), dataset]).generate_state(1)[0])
    members = np.flatnonzero(dataset_index == dataset)
    epochs = _ENDLESS // len(members) + 1  # without a number a mixture is longer than Python counts
    parts.append(grain.MapDataset.source(members).seed(part_seed).shuffle().repeat(epochs))
  return grain.MapDataset.mix(parts, mixing_rates(sizes, mixture).tolist())


def stratified_sample(source: Source, count: int) -> np.ndarray:
  """Indices, rising, int64 [min(count, N)], of examples that represent the whole source.

  They are evenly spaced through the source sorted by data set and template: each of these occurs in
  its proportion (to within one example), from its beginning to its end. Of a source without data
  sets: the first `count`.
  """
  size = len(source)
  if not source.datasets or count >= size:
    return np.arange(min(count, size))
  by_stratum = np.lexsort((np.arange(size), source.template_index, source.dataset_index))
  spaced = (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * count)
  return np.sort(by_stratum[spaced])


def check_held_out(train: Source, held_out: Iterable[Source]) -> None:
  """UserError if a held-out source has a data set of the training data.

  A file whose rows name no data set is one of its contents, whatever the name of the file.
  """
  for source in held_out:
    shared = train.identities.keys() & source.identities.keys()
    if names := sorted({source.identities[one] for one in shared}):
      raise UserError(
        f"{source.name} is held out, and {', '.join(names)} of it is in the training data"
        f" {train.name} too; take it out of one of them"
      )
