"""What a folder of sentence-transformers says besides the encoder (Reimers and Gurevych 2019).

modules.json          the modules from tokens to one vector a text
N_Pooling/config.json  how the states are pooled
sentence_bert_config.json (or the name of another model)  the longest text, lower-casing
config_sentence_transformers.json  prompts: texts that are put before queries and documents;
                       truncate_dim: how many numbers of a vector are kept
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from tokenizers import normalizers

from frozen_jax.backbones.hf_folder import read_json
from frozen_jax.core.errors import UserError

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_*_config.json"

_FLAG = "pooling_mode_"
_POOLINGS = {
  "mean_tokens": "mean",
  "cls_token": "cls",
  "max_tokens": "max",
  "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
  "weightedmean_tokens": "weightedmean",
  "lasttoken": "lasttoken",
}
# Keys of the Transformer module that do not change a text's vector.
_IGNORED = ("transformer_task", "modality_config", "module_output_name", "unpad_inputs", "backend")
_IGNORED_ARGS = ("attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "use_fast")
_ARGS = ("model_args", "tokenizer_args", "config_args")
_ARGS += ("model_kwargs", "processor_kwargs", "config_kwargs")


@dataclasses.dataclass(frozen=True)
class TextSettings:
  """How texts are put to an encoder.

  query_prompt, document_prompt, default_prompt: what is put before queries, documents and other
  texts. max_length: longer texts are truncated to so many tokens; 0: the model's own limit.
  lower_case: texts are lower-cased. pool_prompt: whether the prompt's tokens are pooled, too.
  """

  query_prompt: str = ""
  document_prompt: str = ""
  default_prompt: str = ""
  max_length: int = 0
  lower_case: bool = False
  pool_prompt: bool = True


def pooling_fields(folder: pathlib.Path, width: int) -> dict[str, Any]:
  """The fields of the encoder's config that say how states become one vector a text.

  As in sentence-transformers: by modules.json, and `truncate_dim`, which cuts a vector after it is
  normalised, if it is. Without modules.json the mean; the last token of a causal LM.

  Raises:
    UserError: modules.json has a module that is not understood, or truncate_dim is no size.
  """
  if not (folder / MODULES).is_file():
    return {"pooling": _default_pooling(folder / "config.json")}
  fields: dict[str, Any] = {"pooling": "", "vector_width": _vector_width(folder / PROMPTS, width)}
  for number, module in enumerate(read_json(folder / MODULES, list)):
    module = module if isinstance(module, dict) else {}
    kind = str(module.get("type")).rpartition(".")[2]
    if number == 0 and kind == "Transformer" and not module.get("path"):
      continue
    path = folder / pathlib.PurePath(str(module.get("path"))).name / "config.json"
    if kind == "Pooling" and not fields["pooling"]:
      fields["pooling"] = _pooling_mode(path, width)
    elif kind == "Normalize" and fields["pooling"] and _normalises_vectors(path):
      fields["normalise"] = True
    else:
      raise UserError(
        f"{folder / MODULES} has a step that frozen_jax does not understand: {module};"
        " remove the file to pool the states by their mean"
      )
  return fields


def text_settings(folder: pathlib.Path) -> TextSettings:
  """How texts are put to the folder's encoder; nothing of the folder is a prompt: no prompt.

  Raises:
    UserError: a file is not understood.
  """
  if not (folder / MODULES).is_file():
    return TextSettings()
  names = _prompts(folder / PROMPTS)
  values: Mapping[str, Any] = {}
  for path in sorted(folder.glob(TRANSFORMER)):
    values = read_json(path)
    _check_transformer(path, values)
  pools = sorted(folder.glob("*_Pooling/config.json"))
  return TextSettings(
    names.get("query", ""),
    names.get("document", ""),
    names[""],
    values.get("max_seq_length") or 0,
    bool(values.get("do_lower_case")),
    all(read_json(path).get("include_prompt", True) for path in pools),
  )


def lower_cased(tokenizer: Any) -> Any:
  """The tokenizer, changed so that it lower-cases all texts first.

  Raises:
    UserError: it is none of the `tokenizers` package.
  """
  if not tokenizer.is_fast:
    raise UserError(
      f"do_lower_case of {TRANSFORMER} cannot be had of {type(tokenizer).__name__}; set it to false"
    )
  backend = tokenizer.backend_tokenizer
  steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
  backend.normalizer = normalizers.Sequence(steps)
  return tokenizer


def _vector_width(path: pathlib.Path, width: int) -> int:
  """How many numbers of a vector are kept; 0: all.

  No other key of the file changes a vector: `similarity_fn_name` is how two are compared.
  """
  kept = read_json(path).get("truncate_dim") if path.is_file() else None
  if kept is None:
    return 0
  if type(kept) is not int or kept < 1:
    raise UserError(
      f"{path}: truncate_dim is {kept!r}, where a number of dimensions is needed, 1 to {width}"
    )
  return kept if kept < width else 0


def _prompts(path: pathlib.Path) -> dict[str, str]:
  """Name -> text that is put before a text; "": the default one."""
  values = read_json(path) if path.is_file() else {}
  prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
  if not isinstance(prompts, dict) or not all(
    text is None or isinstance(text, str) for text in prompts.values()
  ):
    raise UserError(f"{path}: prompts is no object of texts; get the file again")
  texts = {"query": "", "document": ""} | {name: text or "" for name, text in prompts.items()}
  if default is not None and default not in texts:
    raise UserError(
      f"{path}: default_prompt_name is {default!r} and the prompts are"
      f" {', '.join(texts)}; name one of them"
    )
  return texts | {"": "" if default is None else texts[default]}


def _check_transformer(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """UserError for a setting of the Transformer module that is not understood."""
  args = {f"{key}.{name}": v for key in _ARGS for name, v in (values.get(key) or {}).items()}
  left = {k: v for k, v in values.items() if k not in (*_ARGS, *_IGNORED) and v is not None}
  left |= {key: value for key, value in args.items() if key.split(".")[1] not in _IGNORED_ARGS}
  length, lower = left.pop("max_seq_length", 1), left.pop("do_lower_case", False)
  if type(length) is not int or length < 1:
    left["max_seq_length"] = length
  if not isinstance(lower, bool):
    left["do_lower_case"] = lower
  left = {key: value for key, value in left.items() if value not in ({}, [], False)}
  if left:
    listed = "; ".join(f"{key} = {value!r}" for key, value in sorted(left.items()))
    raise UserError(f"{path} has settings that frozen_jax does not understand: {listed}")


def _normalises_vectors(path: pathlib.Path) -> bool:
  """Whether a Normalize module is of the pooled vectors, as it is where it has no config."""
  values = read_json(path) if path.is_file() else {}
  return {values.get(f"module_{side}put_name") for side in ("in", "out")} <= {
    None,
    "sentence_embedding",
  }


def _default_pooling(path: pathlib.Path) -> str:
  """The pooling of a folder that is not of sentence-transformers."""
  values = read_json(path)
  kinds = values.get("architectures") or [""]
  causal = str(kinds[0]).endswith("ForCausalLM") and values.get("is_causal", True)
  return "lasttoken" if causal else "mean"


def _pooling_mode(path: pathlib.Path, width: int) -> str:
  """The one pooling mode that the config of a Pooling module turns on; "mean" where none is."""
  values = read_json(path)
  flags = [key.removeprefix(_FLAG) for key, on in values.items() if key.startswith(_FLAG) and on]
  mode = values.get("pooling_mode") or [_POOLINGS.get(flag, flag) for flag in flags] or "mean"
  modes = [mode] if isinstance(mode, str) else list(mode)
  size = values.get("word_embedding_dimension", values.get("embedding_dimension", width))
  # Where the prompt is left out, sentence-transformers weights tokens by their place after it.
  apart = modes == ["weightedmean"] and not values.get("include_prompt", True)
  if len(modes) != 1 or modes[0] not in _POOLINGS.values() or size != width or apart:
    raise UserError(
      f"{path} asks for a pooling that frozen_jax does not understand ({values}); one of "
      f"{', '.join(_POOLINGS.values())} of {width} numbers can be done"
    )
  return modes[0]
