"""Questions as the input embeddings that the frozen LM reads, for servers that take embeddings.

prompt_embeds.safetensors   of each question a tensor [P + T, D], float32, named by its id
prompt_embeds.jsonl         {"id", "prompt_embeds"} a line: the same in base64 of `torch.save`,
                            as vLLM's completions take it (--enable-prompt-embeds)
prompt_embeds.json          what they are (`manifest`)
"""

import base64
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, Int

from frozen_jax.backbones import decoder
from frozen_jax.backbones.prompts import prepend
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt, Prompts, Tree
from frozen_jax.decoding.prompts import left_padded
from frozen_jax.export.about import about_model
from frozen_jax.export.manifest import write_manifest
from frozen_jax.export.torch_file import torch_bytes
from frozen_jax.methods.late_prompt import LatePrompt
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.sharding.batch import shard_batch

_METHODS = ("zero_shot", "prompt_tuning", "p_tuning", "id_pt")  # vectors before the text, no more
_BATCH = 16
_RESERVED = "__metadata__"  # of safetensors


def check_prompt_embeds(about: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
  """UserError for a method whose input embeddings alone do not make its answers.

  about: an adapter's description, of which its method counts. parts: what it holds, by name.
  """
  if (method := about["method"]) not in _METHODS:
    raise UserError(
      f"{method} does more than put vectors before the embedded text ({', '.join(parts)}), so its"
      " input embeddings are not enough; --config.export.format=stablehlo runs it elsewhere, and"
      " adapter in frozen_jax"
    )


def write_prompt_embeds(
  folder: pathlib.Path, model: TunedModel, ids: Sequence[str], prompts: Sequence[Prompt]
) -> None:
  """Writes the embeddings of prompts, each with its id, into a folder.

  Raises UserError for a method of `check_prompt_embeds`, for a prompt within the stack, and for
  ids that cannot name tensors.
  """
  check_prompt_embeds({"method": model.method.name}, {**model.trained, **model.frozen_inputs})
  method: Any = model.method
  if isinstance(method, LatePrompt):
    raise UserError(
      "the vectors of this prompt join the text within the stack (prompt.layer), not at its input;"
      " --config.export.format=stablehlo runs it elsewhere, and adapter in frozen_jax"
    )
  ids = list(map(str, ids))  # JSON lines may have numbers
  _check_ids(ids)
  by_number = dict(input_embeds(model, prompts))
  rows = {name: by_number[number] for number, name in enumerate(ids)}
  about = about_model(model)
  metadata = {name: str(about[name]) for name in ("method", "model", "template")}
  data = safetensors.numpy.save(rows, metadata={"format": "pt", **metadata})
  (folder / "prompt_embeds.safetensors").write_bytes(data)
  with (folder / "prompt_embeds.jsonl").open("w", encoding="utf-8") as file:
    for name, row in rows.items():
      text = base64.b64encode(torch_bytes(row)).decode("ascii")
      file.write(json.dumps({"id": name, "prompt_embeds": text}, ensure_ascii=False) + "\n")
  write_manifest(folder, "prompt_embeds", about | {"width": model.lm.config.width})


def input_embeds(
  model: TunedModel, prompts: Sequence[Prompt]
) -> Iterator[tuple[int, Float[np.ndarray, "_ D"]]]:
  """(number of the prompt, its input embeddings [P + T, D] without padding, float32)."""
  method = model.method
  assert isinstance(method, SinglePass)
  for numbers, arrays in left_padded(prompts, _BATCH):
    batch = shard_batch(arrays, model.lm.mesh)
    x, mask = map(np.asarray, _embed(method, model.trained, model.frozen, batch))
    for row, number in enumerate(numbers):
      yield number, np.ascontiguousarray(x[row][mask[row] > 0], np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _embed(
  method: SinglePass, trained: Tree, frozen: Tree, prompts: Prompts
) -> tuple[Float[Array, "B _ D"], Int[Array | np.ndarray, "B _"]]:
  text = decoder.embed(frozen["lm"], method.decoder, prompts["tokens"])
  return prepend(method.prompt(trained, frozen, prompts), text, prompts["mask"])


def _check_ids(ids: Sequence[str]) -> None:
  """UserError for an id that cannot name a tensor: used twice, empty, reserved, not printable."""
  seen: set[str] = set()
  for name in ids:
    wrong = "is used twice" if name in seen else ""
    if name == _RESERVED or not name or not name.isprintable():
      wrong = "cannot name a tensor"
    if wrong:
      raise UserError(f"predict.input: the id {name[:80]!r} {wrong}; give each question its own id")
    seen.add(name)
