"""Multi-task rows from JSON-lines files, such as those of T0/P3, as a tensorflow-datasets builder.

For files that are too large to be unpacked into memory at each start, and for users of tfds:

  import frozen_jax.data.builders.task_rows
  builder = tfds.builder("task_rows/t0", folder="FOLDER", file_format="array_record")
  builder.download_and_prepare()

prepares every `SPLIT.jsonl` and `SPLIT.jsonl.gz` of FOLDER; "tfds:task_rows/t0/SPLIT" then opens
one. The name t0 is free. Without `folder`, files are read from the folder of tfds for files that
users add, MANUAL_DIR/t0.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import local_path
from frozen_jax.data.builders.task_features import feature_values, task_features
from frozen_jax.data.examples import Example
from frozen_jax.data.indexed_rows import IndexedRows
from frozen_jax.data.json_lines import JsonLines

_ENDING = re.compile(r"\.jsonl(\.gz)?$")


class TaskRows(tfds.core.GeneratorBasedBuilder):
  """Rows {"id", "dataset", "template", "input", "target", "choices", "answers"}, in file order.

  Files hold rows of any of the forms with an input (`data/examples.py`) that name a data set; rows
  with an empty target are left out. UserError for other rows, and for a folder without such files.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put SPLIT.jsonl or SPLIT.jsonl.gz into a folder NAME there."

  def __init__(
    self,
    *,
    config: str | tfds.core.BuilderConfig | None = None,
    folder: str | os.PathLike = "",
    **options: Any,
  ):
    name = config or (pathlib.Path(folder).name if folder else "rows")
    if isinstance(name, str):
      config = tfds.core.BuilderConfig(name=name)
    self._folder = folder
    super().__init__(config=config, **options)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self, description=__doc__, features=task_features(), disable_shuffling=True
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    folder = local_path(self._folder or dl_manager.manual_dir / self.builder_config.name)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = {_ENDING.sub("", path.name): path for path in paths if _ENDING.search(path.name)}
    if not files:
      raise UserError(f"{folder} holds no .jsonl or .jsonl.gz files; put one there for each split")
    return {split: self._generate_examples(path) for split, path in files.items()}

  def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, Example]]:
    rows = IndexedRows(JsonLines(path), str(path), "", fields={}, templates={})
    for index in range(len(rows)):
      example = {"id": str(index), **rows[index]}
      if not rows.datasets or "input" not in example:
        raise UserError(f"{path} holds no rows of tasks; each needs `dataset` and `input`")
      yield index, feature_values(example)
