"""Batches with states of their texts that training does not change, which a frozen model computes.

These are a frozen text encoder's states (`ENCODER`), and those of a recursive LM's first pass
(`FIRST_PASS`). States come from the feature store; texts that it does not have are read once and
stored. A text is read in a shape that depends on its own length only: a fixed number of rows, of
the power of two that holds it. So its states are a function of the text: on one type of device they
are equal bit by bit in whatever batch it occurs first (another shape would be rounded differently,
by about 1e-6 of their size in float32), and a run that is resumed with a full store continues
exactly.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from frozen_jax.core.types import HostBatch
from frozen_jax.data.feature_store import FeatureStore, TextKey, text_key
from frozen_jax.text.padding import pad_sequences, power_of_two

ENCODED_ROWS = 8
_MIN_WIDTH = 16  # positions of a text

Encode = Callable[[np.ndarray, np.ndarray], Any]


@runtime_checkable
class ResumableBatches(Protocol):
  """Endless training batches whose position can be saved and restored."""

  @property
  def counts(self) -> Mapping[str, int]: ...

  def __next__(self) -> HostBatch: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class StateKeys(NamedTuple):
  """Keys of a batch: tokens and mask [B, tokens] of texts, their states, and who had them.

  cached, int32 [B]: 1 where the row's states were in the store (0 for a row without a text).
  replaces_tokens: whether the tokens have done their work where the states are there.
  """

  tokens: str
  mask: str
  states: str
  cached: str
  replaces_tokens: bool


ENCODER = StateKeys("encoder_tokens", "encoder_mask", "encoder_states", "encoder_cached", True)
FIRST_PASS = StateKeys("tokens", "mask", "first_pass_states", "first_pass_cached", False)


class TextStates:
  """Maps batches to batches with states, by means of a feature store.

  `hits` and `misses` count the rows with a text whose states were in the store, and were not.
  """

  def __init__(
    self,
    store: FeatureStore,
    encode: Encode,
    rows: int = ENCODED_ROWS,
    keys: StateKeys = ENCODER,
    max_width: int | None = None,
  ):
    """Configures where the states come from.

    Args:
      store: of the model's states.
      encode: tokens and mask, int32 [N, tokens], padded on the right -> the states
        [N, tokens, width] in the dtype of the store. With several hosts each calls it for texts of
        its own, so it must be computed on the host's own devices.
      rows: N, of each call; a multiple of the number of parts into which devices split a batch.
      keys: where a batch has its texts, and where the states go.
      max_width: how many positions `encode` can read; None: any number.
    """
    self._store, self._encode, self._rows, self._keys = store, encode, rows, keys
    self._max_width = max_width
    self.hits = self.misses = 0

  def __call__(self, batch: HostBatch) -> dict[str, np.ndarray]:
    """The batch with states, zeros at padded positions; one without tokens stays as it is."""
    batch, names = dict(batch), self._keys
    if names.tokens not in batch:
      return batch
    tokens, mask = batch[names.tokens], np.asarray(batch[names.mask]) > 0
    if names.replaces_tokens:
      del batch[names.tokens]
    texts = [np.asarray(row[real], np.int32) for row, real in zip(tokens, mask, strict=True)]
    keys = [text_key(text) for text in texts]
    with_text = [index for index, text in enumerate(texts) if len(text)]
    stored = self._store.find([keys[index] for index in with_text])
    cached = dict(zip(with_text, stored, strict=True))
    is_cached = np.array([cached.get(index) is not None for index in range(len(texts))], np.int32)
    missing = {keys[index]: texts[index] for index in with_text if cached[index] is None}
    encoded = self._encode_texts(missing)
    states = np.zeros((*tokens.shape, self._store.width), self._store.dtype)
    for index in with_text:
      row = cached[index]
      states[index, mask[index]] = encoded[keys[index]] if row is None else row
    self.hits += int(is_cached.sum())
    self.misses += len(with_text) - int(is_cached.sum())
    return batch | {names.states: states, names.cached: is_cached}

  def flush(self) -> None:
    """Writes new states to disk."""
    self._store.flush()

  def _encode_texts(self, texts: Mapping[TextKey, np.ndarray]) -> dict[TextKey, np.ndarray]:
    """Encodes texts, those of equal width together, and adds them to the store."""
    by_width: dict[int, list[TextKey]] = {}
    for key, text in texts.items():
      width = power_of_two(len(text), _MIN_WIDTH)
      width = width if self._max_width is None else min(width, self._max_width)
      by_width.setdefault(width, []).append(key)
    encoded: dict[TextKey, np.ndarray] = {}
    for width, keys in sorted(by_width.items()):
      for start in range(0, len(keys), self._rows):
        chosen = keys[start : start + self._rows]
        tokens, mask = pad_sequences([texts[key] for key in chosen], width, self._rows)
        states = np.asarray(self._encode(tokens, mask))
        encoded |= {key: row[: len(texts[key])] for key, row in zip(chosen, states, strict=False)}
    for key, states in encoded.items():
      self._store.add(key, states)
    return encoded


class EncodedBatches:
  """Training batches with states; their position is that of the inner batches.

  `get_state` writes new states to disk, so that a checkpoint finds what was encoded before it.
  """

  def __init__(self, batches: ResumableBatches, states: TextStates):
    self._batches, self._states = batches, states

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return self._states(next(self._batches))

  @property
  def counts(self) -> Mapping[str, int]:
    """The counts of the inner batches."""
    return self._batches.counts

  def get_state(self) -> Any:
    """The position of the inner batches."""
    self._states.flush()
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    """Restores a position."""
    self._batches.set_state(state)
