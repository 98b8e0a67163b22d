"""What the rows of a training batch are, for people: ids and texts in place of arrays."""

from typing import Any

import numpy as np

from frozen_jax.core.types import ROW_INDEX, HostBatch
from frozen_jax.data.examples import Example
from frozen_jax.data.pair_encoder import PairEncoder
from frozen_jax.data.rows import Rows
from frozen_jax.data.tasks import QuestionTask, Task, decoded

Texts = dict[str, Any]


def batch_texts(batch: HostBatch, tokenizer: Any, source: Rows[Example], task: Task) -> list[Texts]:
  """Of each row of `TrainingBatches` its id and what the model reads: `id`, `prompt`, `answer`.

  The id is that of the example, or of plain text the number of the window, from 1.
  """
  found: list[Texts] = []
  for row, index in enumerate(batch[ROW_INDEX].tolist()):
    tokens = batch["tokens"][row][np.asarray(batch["mask"][row]) > 0]
    start = len(tokens) - int(batch["target_mask"][row].sum())
    is_example = isinstance(task, QuestionTask)
    id = source[index].get("id", str(index)) if is_example else f"window {index + 1}"
    prompt, answer = (decoded(tokenizer, part) for part in (tokens[:start], tokens[start:]))
    found.append({"id": id, "prompt": prompt, "answer": answer})
  return found


def group_texts(batch: HostBatch, encoder: PairEncoder) -> list[Texts]:
  """Of each question of `GroupBatches` its texts, each with a passage, the positive one first."""
  found: list[Texts] = []
  tokens, mask, index = (batch[name] for name in ("tokens", "mask", "text_index"))
  per_row = mask.shape[2]
  for unit, questions in enumerate(index):
    for question in questions:
      places = [divmod(int(one), per_row) for one in question if one >= 0]
      ids = [tokens[unit, row][mask[unit, row, slot] > 0] for row, slot in places]
      found.append({"texts": [encoder.text(one) for one in ids]})
  return found
