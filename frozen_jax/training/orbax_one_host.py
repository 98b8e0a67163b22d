"""Orbax where one of several hosts saves what all of them hold, or each reads a copy of its own.

`active_processes` of Orbax 0.12 is meant for it and is not enough: it asks all processes whether
they save to the same path, and misses the array metadata of those that do not save. This is the
only module that touches what is not public in Orbax; `tests/run/test_object_stores.py` runs it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.metadata import array_metadata_store
from orbax.checkpoint.experimental.v1._src.saving import execution

_QUESTION = "_check_directory_consistency"


def set_alone(context: ocp.Context) -> None:
  """Sets a context up so that no other host is waited for."""
  context.multiprocessing.active_processes = {jax.process_index()}
  context.multiprocessing.primary_host = jax.process_index()
  context.multiprocessing.barrier_sync_key_prefix = f"alone{jax.process_index()}"


@contextlib.contextmanager
def saving_alone(context: ocp.Context) -> Iterator[None]:
  """As `set_alone`, to save what other hosts hold, too."""
  set_alone(context)
  context.array.saving.use_replica_parallel = False  # which shares replicas between hosts
  context.array.saving.array_metadata_store = _OneHostMetadata()
  asked = getattr(execution, _QUESTION)
  setattr(execution, _QUESTION, lambda directory: None)
  try:
    yield
  finally:
    setattr(execution, _QUESTION, asked)


class _OneHostMetadata(array_metadata_store.Store):
  """The store of array metadata, where there are none to be compared between hosts."""

  async def read(self, checkpoint_dir: Any, process_index: int | None = None) -> Any:
    """None where it is asked for those of all hosts."""
    return None if process_index is None else await super().read(checkpoint_dir, process_index)
