"""A soft prompt in the format of PEFT, so that `peft.PeftModel.from_pretrained` loads it.

The format (PEFT, prompt tuning): `adapter_config.json` and `adapter_model.safetensors`, the latter
with one tensor `prompt_embeddings` [P, D]. PEFT prepends these vectors to the embedded text.
Neither torch nor peft is needed to write it. A README.md says how the text must look.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from frozen_jax.backbones import hub
from frozen_jax.core import files
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.text.templates import QuestionTemplate

# The built-in LMs as the hub knows them.
HUB_NAMES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# The types of PEFT in which what these methods train could be written, and is not yet.
_NOT_WRITTEN = {"lora": "LORA", "prefix_tuning": "PREFIX_TUNING", "p_tuning": "P_TUNING"}


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """The frozen LM for transformers.

  name      "owner/name" of the hub, or the absolute path of a folder or a GGUF file
  revision  of the hub: a commit where it is known; None: the newest
  of_hub    whether `name` is one of the hub
  note      a sentence on how it differs from the LM that the prompt was trained on, or ""
  """

  name: str
  revision: str | None = None
  of_hub: bool = False
  note: str = ""


def base_model(name: str) -> BaseModel:
  """The LM of `load_frozen(name)` as transformers finds it."""
  if name in HUB_NAMES:
    note = "The prompt was trained on this model quantised to 4 bits, so figures differ a little."
    return BaseModel(HUB_NAMES[name], None, True, note)
  if name.startswith(hub.PREFIX):
    repository, revision = hub.parse_name(name)
    commit = hub.fetch(name, progress=False, weights=False).name  # cached, as the LM was loaded
    return BaseModel(repository, commit if re.fullmatch("[0-9a-f]{40}", commit) else revision, True)
  path, note = user_path(name).absolute(), ""
  if isinstance(path, StorePath):
    return BaseModel(
      str(path), note=f"transformers reads no {path.scheme}://: copy it to a folder."
    )
  if path.is_file():
    note = (
      "transformers reads this file by"
      f" `AutoModelForCausalLM.from_pretrained({str(path.parent)!r}, gguf_file={path.name!r})`."
    )
  return BaseModel(str(path), note=note)


def check_peft(method: str, parts: Mapping[str, Any]) -> None:
  """UserError for an adapter that is not written as PEFT's.

  Args:
    method: its method's name.
    parts: what it holds, trained and frozen, by name: trees of arrays.
  """
  instead = "--config.export.format=adapter writes it, for frozen_jax.load_adapter"
  if method in _NOT_WRITTEN:
    raise UserError(
      f"this export does not write {method} for PEFT ({_NOT_WRITTEN[method]}) yet, only one tuned"
      f" prompt; {instead}"
    )
  if set(parts) != {"prompt"} or set(parts["prompt"]) != {"vectors"}:
    raise UserError(
      f"PEFT has no form for what {method} trains ({', '.join(parts)}); it takes one tuned prompt."
      f" {instead}"
    )
  if parts["prompt"]["vectors"].ndim != 2:
    raise UserError(
      f"this export does not write several prompts, one for each data set, yet; {instead}"
    )


def write_peft_prompt(
  folder: str | AnyPath,
  prompt: Float[Any, "P D"],
  base: BaseModel,
  token_dim: int,
  num_layers: int,
  num_attention_heads: int,
  template: QuestionTemplate,
) -> AnyPath:
  """Writes a soft prompt for a causal LM as a PEFT adapter, in float32; returns the folder.

  Args:
    folder: created if necessary; an adapter of PEFT in it is replaced.
    prompt: the trained vectors, in the scale of the LM's input embeddings.
    base: the frozen LM, which PEFT records.
    token_dim, num_layers, num_attention_heads: of the frozen LM.
    template: into which a question is put, for the README.md.

  Raises:
    ValueError: `prompt` is not [P, token_dim].
    UserError: the folder cannot be written.
  """
  vectors = np.ascontiguousarray(prompt, dtype=np.float32)
  if vectors.ndim != 2 or vectors.shape[1] != token_dim:
    raise ValueError(f"a prompt must be [P, {token_dim}], this one is {list(vectors.shape)}")
  config = {
    "base_model_name_or_path": base.name,
    "revision": base.revision,
    "inference_mode": True,
    "num_attention_heads": num_attention_heads,
    "num_layers": num_layers,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": vectors.shape[0],
    "peft_type": "PROMPT_TUNING",
    "prompt_tuning_init": "RANDOM",
    "task_type": "CAUSAL_LM",
    "token_dim": token_dim,
  }
  folder = user_path(folder)
  data = safetensors.numpy.save({"prompt_embeddings": vectors}, metadata={"format": "pt"})
  files.write_bytes(folder / "adapter_model.safetensors", data)
  files.write_bytes(folder / "README.md", _note(base, template).encode())
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  files.write_bytes(folder / "adapter_config.json", text.encode())
  return folder


def _note(base: BaseModel, template: QuestionTemplate) -> str:
  """The README.md: the model, the text, and what to set when generating."""
  head = "---\nlibrary_name: peft\n" + f"base_model: {base.name}\n" * base.of_hub + "---\n"
  revision = f", revision `{base.revision}`" if base.revision else ""
  if template.chat:
    how = "A question is the user's message in the tokenizer's chat template:"
    line = (
      'ids = tokenizer.apply_chat_template([{"role": "user", "content": question}],'
      '\n                                    add_generation_prompt=True, return_tensors="pt",'
      "\n                                    return_dict=True)"
    )
  else:
    how = "A question is put into this text, and the answer follows it:"
    line = f'ids = tokenizer({template.prompt!r}.format(question=question), return_tensors="pt")'
  return f"""{head}
# A tuned prompt

For `{base.name}`{revision}. {base.note}

{how}

    import peft, transformers
    model = peft.AutoPeftModelForCausalLM.from_pretrained("THIS FOLDER")
    tokenizer = transformers.AutoTokenizer.from_pretrained({base.name!r})
    question = "..."
    {line.replace(chr(10), chr(10) + "    ")}
    out = model.generate(**ids, max_new_tokens=32, do_sample=False, use_cache=False)
    print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))

- `use_cache=False` is needed: with its cache, PEFT's `generate` gives other tokens for a tuned
  prompt than without (https://github.com/huggingface/peft/issues/2123). Without it they are those
  of the training.
- Give one text at a time, or pad on the right: PEFT puts the prompt before the padding, so padding
  on the left stands between the prompt and the text.
"""
