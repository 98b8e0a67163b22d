"""Splits of data set libraries, as rows by index: those that tensorflow-datasets has prepared as
array_record, and those of the package `datasets`, which is optional.

Either library is imported when a split is opened.
"""

import os
from collections.abc import Sequence
from typing import Any

from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import on_terminal
from frozen_jax.core.user_path import local_path


class PreparedRows:
  """The rows of a prepared split: `spec` names it, `digest` what it is made from."""

  def __init__(self, rows: Any, spec: str, digest: str):
    self._rows, self._spec, self.digest = rows, spec, digest

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._rows[index]

  def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
    return self._rows.__getitems__(indices)

  def describe(self, index: int) -> str:
    """Where a row is, for messages."""
    return f"{self._spec}, row {index}"


def open_builtin(spec: str) -> PreparedRows:
  """A built-in data set, "NAME/SPLIT"; it is prepared the first time.

  Raises:
    UserError: the user's cache cannot be written.
  """
  from frozen_jax.data.builders import prepare

  name, split = spec.split("/")
  builder = prepare.prepared_builder(name)
  digest = f"{name}-{prepare.build_key()}/{split}"
  return PreparedRows(builder.as_data_source(split=split), spec, digest)


def open_tfds(spec: str) -> PreparedRows:
  """A data set of tensorflow-datasets, "tfds:NAME/SPLIT"; prepared as array_record if it is not.

  Raises:
    UserError: a malformed name, or tensorflow-datasets cannot provide it.
  """
  name, _, split = spec.removeprefix("tfds:").rpartition("/")
  if not name or not split:
    raise UserError(f"{spec!r} is not of the form tfds:NAME/SPLIT, such as tfds:ag_news/train")
  import tensorflow_datasets as tfds

  if name.split("/")[0] == "task_rows":  # importing the module registers the builder
    import frozen_jax.data.builders.task_rows  # noqa: F401

  if not on_terminal():
    tfds.disable_progress_bar()
  folder = os.environ.get("TFDS_DATA_DIR")
  try:
    rows = tfds.data_source(
      name, split=split, data_dir=folder, builder_kwargs={"file_format": "array_record"}
    )
  except Exception as error:  # tfds raises nearly anything: unknown name, no network, no split
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    raise UserError(
      f"tensorflow-datasets cannot give {name!r}, split {split!r} ({reason}); check the name, or"
      " prepare it as array_record and let TFDS_DATA_DIR name its folder"
    ) from error
  version = rows.dataset_info.version
  return PreparedRows(rows, spec, f"tfds:{name}/{version}/{split}/{len(rows)}")


def open_hub(spec: str) -> PreparedRows:
  """A data set of the Hugging Face hub or a folder, "hf:NAME[:CONFIG]/SPLIT", by `datasets`.

  Raises:
    UserError: a malformed name, no package `datasets`, or it cannot provide the split.
  """
  name, _, split = spec.removeprefix("hf:").rpartition("/")
  name, _, config = name.partition(":")
  if not name or not split:
    raise UserError(f"{spec!r} is not of the form hf:NAME[:CONFIG]/SPLIT, such as hf:squad/train")
  try:
    import datasets
  except ImportError as error:
    raise UserError(f"{spec} needs the package datasets; pip install datasets") from error
  if not on_terminal():
    datasets.disable_progress_bars()
  try:
    rows = datasets.load_dataset(str(local_path(name)), config or None, split=split)
  except Exception as error:  # it raises nearly anything: unknown name, no network, no split
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    raise UserError(
      f"datasets cannot give {name!r}, split {split!r} ({reason}); check the name and the network"
    ) from error
  size = rows.info.dataset_size  # bytes
  digest = f"hf:{name}:{config}/{rows.info.version}/{split}/{len(rows)}/{size}"
  return PreparedRows(rows, spec, digest)
