"""Adapters in the format of PEFT, so that `peft.PeftModel.from_pretrained` loads them.

A folder of PEFT is `adapter_config.json` and `adapter_model.safetensors`. Its types that compute
what a method here does are written: PROMPT_TUNING, P_TUNING (the prompt that its network produces:
PEFT stores no more of it), PREFIX_TUNING and LORA (`peft_layout` has the layouts). Neither torch
nor peft is needed. A README.md says how the text must look. `peft_reading` reads such folders.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float

from frozen_jax.backbones import hub
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import files
from frozen_jax.core.errors import UserError
from frozen_jax.core.object_store import AnyPath, StorePath
from frozen_jax.core.user_path import user_path
from frozen_jax.export import peft_layout
from frozen_jax.export.peft_reading import CONFIG, ROWS, TENSORS, PeftAdapter
from frozen_jax.methods.lora import LoraSettings
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.text.templates import QuestionTemplate

# The built-in LMs as the hub knows them.
HUB_NAMES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# The types of PEFT, by the methods here, and what each is called in the README.md.
_TYPES = {
  "prompt_tuning": "PROMPT_TUNING",
  "p_tuning": "P_TUNING",
  "prefix_tuning": "PREFIX_TUNING",
  "lora": "LORA",
}
_TITLES = {
  "PROMPT_TUNING": "A tuned prompt",
  "P_TUNING": "A tuned prompt",
  "PREFIX_TUNING": "A tuned prefix",
  "LORA": "Low-rank updates",
}
# How an answer is generated, by type, and what to know about that; for LORA as always.
_GENERATE = "out = model.generate(**ids, max_new_tokens=32, do_sample=False{})"
_GENERATES = dict.fromkeys(("PROMPT_TUNING", "P_TUNING"), _GENERATE.format(", use_cache=False"))
_GENERATES |= {"LORA": _GENERATE.format("")}
_GENERATES["PREFIX_TUNING"] = """out = ids["input_ids"]
    for _ in range(32):
      out = torch.cat([out, model(input_ids=out).logits[:, -1:].argmax(-1)], dim=1)"""
_PADDING = """- Give one text at a time, or pad on the right: PEFT puts {0} before the padding, so
  padding on the left stands between {0} and the text.
"""
_PROMPTS = """
- `use_cache=False` is needed: with its cache, PEFT's `generate` gives other tokens for a tuned
  prompt than without (https://github.com/huggingface/peft/issues/2123). Without it they are those
  of the training.
""" + _PADDING.format("the prompt")
_ADVICE = {
  "PROMPT_TUNING": _PROMPTS,
  "P_TUNING": _PROMPTS,
  "PREFIX_TUNING": """
- PEFT's `generate` (0.21.2, with transformers 5.24) leaves the prefix out or counts positions
  otherwise; its forward pass, as above, is that of the training.
"""
  + _PADDING.format("the prefix"),
}


@dataclasses.dataclass(frozen=True)
class BaseModel:
  """The frozen LM for transformers.

  name      "owner/name" of the hub, or the absolute path of a folder or a GGUF file
  revision  of the hub: a commit where it is known; None: the newest
  of_hub    whether `name` is one of the hub
  note      a sentence on how it differs from the LM that was frozen in training, or ""
  """

  name: str
  revision: str | None = None
  of_hub: bool = False
  note: str = ""


def base_model(name: str) -> BaseModel:
  """The LM of `load_frozen(name)` as transformers finds it."""
  if name in HUB_NAMES:
    note = "This was trained on the model quantised to 4 bits, so figures differ a little."
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


def check_peft(info: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
  """UserError for an adapter that is not written as PEFT's.

  Args:
    info: the description in its adapter.json.
    parts: what it holds, trained and frozen, by name: trees of arrays.
  """
  instead = "--config.export.format=adapter writes it, for frozen_jax.load_adapter"
  method, prompt = info["method"], info["sections"].get("prompt", {})
  if method == "adapters":
    raise UserError(
      f"PEFT has no bottleneck adapters, so no form for what {method} trains; {instead}"
    )
  if method not in _TYPES:
    raise UserError(
      f"PEFT has no form for what {method} trains ({', '.join(parts)}); it takes a tuned prompt, a"
      f" prefix or low-rank updates. {instead}"
    )
  if method == "prompt_tuning" and prompt.get("layer", "embeddings") not in ("embeddings", "0"):
    raise UserError(
      f"PEFT has prompts at the embeddings only, and this one joins the text at prompt.layer="
      f"{prompt['layer']}; {instead}"
    )
  if "prompt" in parts and parts["prompt"]["vectors"].ndim != 2:
    raise UserError(
      f"this export does not write several prompts, one for each data set, yet; {instead}"
    )


def peft_adapter(model: TunedModel) -> PeftAdapter:
  """A tuned model that `check_peft` lets pass, in PEFT's terms."""
  sizes, trained = model.lm.config, model.trained
  if model.method.name == "lora":
    return lora_adapter(trained["lora"], model.sections["lora"], sizes, model.lm.family)
  if model.method.name == "prefix_tuning":
    return prefix_adapter(trained["prefix"], sizes)
  assert isinstance(model.method, SinglePass)
  # On this host alone: only the first one writes.
  local = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), trained)
  no_text = np.zeros((1, 0), np.int32)
  prompt = model.method.prompt(local, {}, {"tokens": no_text, "mask": no_text})
  if model.method.name == "p_tuning":
    return prompt_adapter(prompt, sizes, model.sections["p_tuning"].width)
  return prompt_adapter(prompt, sizes)


def prompt_adapter(
  prompt: Float[Any, "P D"], sizes: DecoderConfig, network: int = 0
) -> PeftAdapter:
  """A soft prompt, in the scale of the LM's input embeddings.

  sizes: of the frozen LM. network: the width of the network that produced it (P_TUNING); 0: none.
  Raises ValueError for vectors of another width than the LM's.
  """
  vectors = np.ascontiguousarray(prompt, dtype=np.float32)
  if vectors.ndim != 2 or vectors.shape[1] != sizes.width:
    raise ValueError(f"a prompt must be [P, {sizes.width}], this one is {list(vectors.shape)}")
  config = _of_rows(vectors, sizes, sizes.width, sizes.heads)
  if network:
    config |= {"peft_type": "P_TUNING", "encoder_hidden_size": network}
    config |= {"encoder_reparameterization_type": "MLP", "encoder_num_layers": 2}
  else:
    config |= {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
  return PeftAdapter(config, {ROWS: vectors})


def prefix_adapter(
  prefix: Mapping[str, Float[Any, "L P K C"]], sizes: DecoderConfig
) -> PeftAdapter:
  """Trained keys and values, {"k", "v"}; sizes: of the frozen LM."""
  rows = peft_layout.prefix_rows(prefix["k"], prefix["v"])
  # For a prefix the width and the heads of PEFT are those of keys and values.
  config = _of_rows(rows, sizes, sizes.kv_heads * sizes.head_dim, sizes.kv_heads)
  config |= {"peft_type": "PREFIX_TUNING", "prefix_projection": False}
  return PeftAdapter(config, {ROWS: rows})


def lora_adapter(
  updates: Mapping[str, Any], lora: LoraSettings, sizes: DecoderConfig, family: str
) -> PeftAdapter:
  """Low-rank updates {BLOCK: {NAME: {"a", "b"}}}.

  lora: with which they were trained. sizes, family: of the frozen LM.
  """
  modules = peft_layout.modules_of(sizes, family)
  tensors, growth = peft_layout.lora_tensors(updates, modules)
  alpha = lora.alpha * growth
  updated = [name for name in modules if f"base_model.model.{name}.lora_A.weight" in tensors]
  config = {
    "bias": "none",
    "fan_in_fan_out": all(modules[name][0].conv for name in updated),
    "init_lora_weights": True,
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": lora.rank * growth,
    "target_modules": peft_layout.target_modules(tensors, modules),
  }
  return PeftAdapter(config, tensors)


def _of_rows(
  rows: Float[np.ndarray, "P numbers"], sizes: DecoderConfig, width: int, heads: int
) -> dict[str, Any]:
  """The part of adapter_config.json that prompts and prefixes share."""
  return {
    "num_attention_heads": heads,
    "num_layers": sizes.layers,
    "num_transformer_submodules": 1,
    "num_virtual_tokens": len(rows),
    "token_dim": width,
  }


def write_peft(
  folder: str | AnyPath, adapter: PeftAdapter, base: BaseModel, template: QuestionTemplate
) -> AnyPath:
  """Writes an adapter, in float32; returns the folder.

  Args:
    folder: created if necessary; an adapter of PEFT in it is replaced.
    adapter: what is written.
    base: the frozen LM, which PEFT records.
    template: into which a question is put, for the README.md.

  Raises:
    UserError: the folder cannot be written.
  """
  config = {
    **adapter.config,
    "base_model_name_or_path": base.name,
    "revision": base.revision,
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
  }
  folder = user_path(folder)
  data = safetensors.numpy.save(adapter.tensors, metadata={"format": "pt"})
  files.write_bytes(folder / TENSORS, data)
  note = _note(adapter.config["peft_type"], base, template)
  files.write_bytes(folder / "README.md", note.encode())
  text = json.dumps(config, indent=2, sort_keys=True) + "\n"
  files.write_bytes(folder / CONFIG, text.encode())
  return folder


def _note(kind: str, base: BaseModel, template: QuestionTemplate) -> str:
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
# {_TITLES[kind]}

For `{base.name}`{revision}. {base.note}

{how}

    import peft, torch, transformers
    model = peft.AutoPeftModelForCausalLM.from_pretrained("THIS FOLDER")
    tokenizer = transformers.AutoTokenizer.from_pretrained({base.name!r})
    question = "..."
    {line.replace(chr(10), chr(10) + "    ")}
    {_GENERATES[kind]}
    print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
{_ADVICE.get(kind, "")}"""
