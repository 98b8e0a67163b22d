"""The model families as data: which settings make the config, and where each tensor goes.

A family is a table, not a class: to add one, add a `Family` (see CONTRIBUTING.md). HF names and
settings are those of transformers' `config.json` and safetensors files; GGUF names and metadata
are those of llama.cpp (docs/gguf.md of ggml; gguf-py/gguf/constants.py).

What is not in the tables is an error: a setting that nobody has looked at may change the result.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError

Format = Literal["hf", "gguf"]
REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Setting:
  """A field of `DecoderConfig`: the keys that may hold it (first found wins), and its default.

  The default may name another field, written `"=field"`; REQUIRED: there is none.
  """

  field: str
  keys: tuple[str, ...]
  default: Any = REQUIRED


@dataclasses.dataclass(frozen=True)
class Settings:
  """How one format spells the config of a family.

  setting: the fields. only: keys that must hold one of these values where they are present (a
  string `"=field"` stands for the value of that field). silent: keys that do not change what the
  frozen model computes; a trailing `*` stands for anything.
  """

  setting: tuple[Setting, ...]
  only: Mapping[str, tuple[Any, ...]]
  silent: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Key:
  """Where a tensor goes; `{layer}` in a name makes the leaf a stack over the layers.

  transpose: stored [out, in], kept [in, out]. permuted: the config field with the number of heads
  in whose rows llama.cpp interleaves the two rotary halves (GGUF only).
  """

  path: str
  hf: str
  gguf: str
  transpose: bool = False
  permuted: str | None = None


@dataclasses.dataclass(frozen=True)
class Family:
  """One family: its name in either format, its settings and its key table.

  derived: stored tensors (regular expressions) that are computed from the config anyway.
  """

  hf_name: str
  gguf_name: str
  hf: Settings
  gguf: Settings
  keys: tuple[Key, ...]
  derived: tuple[str, ...] = ()


# Keys of any config.json that say nothing about the forward pass of a frozen causal model.
_HF_SILENT = (
  *("_*", "architectures", "attention_dropout", "attn_implementation", "auto_map", "dtype"),
  *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
  *("initializer_range", "model_type", "torch_dtype", "transformers_version", "use_cache"),
  *("finetuning_task", "id2label", "label2id", "problem_type", "num_labels"),
  *("is_llama_config", "pretraining_tp", "tokenizer_class", "torchscript"),
  *("gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict", "prefix"),
  *("transformers.js_config", "use_bfloat16", "task_specific_params", "unsloth_*", "max_length"),
  *("temperature", "top_p"),
)

_LLAMA_HF = Settings(
  setting=(
    Setting("vocab_size", ("vocab_size",)),
    Setting("width", ("hidden_size",)),
    Setting("layers", ("num_hidden_layers",)),
    Setting("heads", ("num_attention_heads",)),
    Setting("kv_heads", ("num_key_value_heads",), "=heads"),
    Setting("head_dim", ("head_dim",), "=width/heads"),
    Setting("mlp_width", ("intermediate_size",)),
    Setting("norm_eps", ("rms_norm_eps",), 1e-6),
    Setting("rope_theta", ("rope_parameters.rope_theta", "rope_theta"), 10_000.0),
    Setting("context", ("max_position_embeddings",), 2048),
    Setting("tied", ("tie_word_embeddings",), False),
    Setting("activation", ("hidden_act",), "silu"),
  ),
  only={
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "is_decoder": (False, True),  # transformers' Llama is causal either way
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (),
    "rope_parameters": (),
    "rope_parameters.rope_type": ("default",),
    "rope_parameters.type": ("default",),
    "rope_parameters.partial_rotary_factor": (1.0,),
    "rope_scaling": (),
    "rope_scaling.rope_type": ("default",),
    "rope_scaling.type": ("default",),
    "hidden_act": tuple(decoder.ACTIVATIONS),
    "pruned_heads": ({},),
    "chunk_size_feed_forward": (0,),
    "tie_encoder_decoder": (False,),
  },
  silent=_HF_SILENT,
)

_LLAMA_GGUF = Settings(
  setting=(
    Setting("vocab_size", ("vocab_size",), "=rows of token_embd.weight"),
    Setting("width", ("embedding_length",)),
    Setting("layers", ("block_count",)),
    Setting("heads", ("attention.head_count",)),
    Setting("kv_heads", ("attention.head_count_kv",), "=heads"),
    Setting("head_dim", ("attention.key_length", "rope.dimension_count"), "=width/heads"),
    Setting("mlp_width", ("feed_forward_length",)),
    Setting("norm_eps", ("attention.layer_norm_rms_epsilon",)),
    Setting("rope_theta", ("rope.freq_base",), 10_000.0),
    Setting("context", ("context_length",)),
  ),
  only={
    "attention.value_length": ("=head_dim",),
    "rope.dimension_count": ("=head_dim",),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
  },
  silent=("tensor_data_layout",),
)

LLAMA = Family(
  hf_name="llama",
  gguf_name="llama",
  hf=_LLAMA_HF,
  gguf=_LLAMA_GGUF,
  keys=(
    Key("embed/tokens", "model.embed_tokens.weight", "token_embd.weight"),
    Key(
      "layers/attn_norm/scale",
      "model.layers.{layer}.input_layernorm.weight",
      "blk.{layer}.attn_norm.weight",
    ),
    Key(
      "layers/attn/q/kernel",
      "model.layers.{layer}.self_attn.q_proj.weight",
      "blk.{layer}.attn_q.weight",
      transpose=True,
      permuted="heads",
    ),
    Key(
      "layers/attn/k/kernel",
      "model.layers.{layer}.self_attn.k_proj.weight",
      "blk.{layer}.attn_k.weight",
      transpose=True,
      permuted="kv_heads",
    ),
    Key(
      "layers/attn/v/kernel",
      "model.layers.{layer}.self_attn.v_proj.weight",
      "blk.{layer}.attn_v.weight",
      transpose=True,
    ),
    Key(
      "layers/attn/o/kernel",
      "model.layers.{layer}.self_attn.o_proj.weight",
      "blk.{layer}.attn_output.weight",
      transpose=True,
    ),
    Key(
      "layers/mlp_norm/scale",
      "model.layers.{layer}.post_attention_layernorm.weight",
      "blk.{layer}.ffn_norm.weight",
    ),
    Key(
      "layers/mlp/gate/kernel",
      "model.layers.{layer}.mlp.gate_proj.weight",
      "blk.{layer}.ffn_gate.weight",
      transpose=True,
    ),
    Key(
      "layers/mlp/up/kernel",
      "model.layers.{layer}.mlp.up_proj.weight",
      "blk.{layer}.ffn_up.weight",
      transpose=True,
    ),
    Key(
      "layers/mlp/down/kernel",
      "model.layers.{layer}.mlp.down_proj.weight",
      "blk.{layer}.ffn_down.weight",
      transpose=True,
    ),
    Key("final_norm/scale", "model.norm.weight", "output_norm.weight"),
    Key("head/kernel", "lm_head.weight", "output.weight", transpose=True),
  ),
  derived=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)

FAMILIES = (LLAMA,)


def family_of(name: Any, form: Format, where: str) -> Family:
  """The family that calls itself `name` in this format.

  Raises:
    UserError: none does; the message lists those there are.
  """
  own = {getattr(family, f"{form}_name"): family for family in FAMILIES}
  if name not in own:
    known = ", ".join(sorted(own))
    raise UserError(f"{where} holds a model of type {name!r}; the types that can be read: {known}")
  return own[name]


def read_config(
  settings: Settings, stored: Mapping[str, Any], where: str, extra: Mapping[str, Any]
) -> DecoderConfig:
  """`stored` (flat: nested keys joined by a dot; None counts as absent) -> the config.

  `extra`: fields that the file does not state as a setting.

  Raises:
    UserError: a setting is missing or not understood; the message names all of them.
  """
  given = {key: value for key, value in stored.items() if value is not None}
  fields: dict[str, Any] = {}
  missing = []
  for setting in settings.setting:
    found = [given[key] for key in setting.keys if key in given]
    if found or setting.default is not REQUIRED:
      fields[setting.field] = found[0] if found else _default(setting.default, fields, extra)
    else:
      missing.append(setting.keys[0])
  if missing:
    raise UserError(f"{where} does not say {', '.join(missing)}; the file may not be a model's")
  fields |= {name: value for name, value in extra.items() if name not in fields}
  odd = [
    f"{key} = {value!r}"
    for key, value in sorted(given.items())
    if not _understood(settings, key, value, fields)
  ]
  if odd:
    raise UserError(
      f"{where} has settings that frozen_jax does not understand, so the model would compute "
      f"something else: {'; '.join(odd)}. Remove them if they do not matter to this model"
    )
  try:
    return DecoderConfig(**_typed(fields, where))
  except ValueError as error:
    raise UserError(f"{where} describes no model: {error}") from None


def leaves(config: DecoderConfig, family: Family) -> dict[str, tuple[Key, tuple[int, ...], bool]]:
  """Each path of the tree: its key, its shape, and whether it is a stack over the layers."""
  keys = {key.path: key for key in family.keys}
  shapes = paths.flatten(decoder.param_shapes(config))
  return {
    path: (keys[path], leaf.shape, "{layer}" in keys[path].hf) for path, leaf in shapes.items()
  }


def _default(default: Any, fields: Mapping[str, Any], extra: Mapping[str, Any]) -> Any:
  if not isinstance(default, str) or not default.startswith("="):
    return default
  if default == "=width/heads":
    return fields["width"] // fields["heads"] if fields.get("heads") else 0
  name = default[1:]
  return fields[name] if name in fields else extra[name]


def _understood(settings: Settings, key: str, value: Any, fields: Mapping[str, Any]) -> bool:
  if key in settings.only:
    allowed = [
      fields[a[1:]] if isinstance(a, str) and a.startswith("=") else a for a in settings.only[key]
    ]
    return value in allowed
  if any(key in setting.keys for setting in settings.setting):
    return True
  return any(key.startswith(s[:-1]) if s.endswith("*") else key == s for s in settings.silent)


def _typed(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The fields in the types that `DecoderConfig` declares; a list or a word is no number."""
  types = {f.name: f.type for f in dataclasses.fields(DecoderConfig)}
  typed = {}
  for name, value in fields.items():
    if name not in types:
      continue
    kind = types[name]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    whole = numeric and float(value).is_integer()
    fits = {int: whole, float: numeric, bool: isinstance(value, bool), str: isinstance(value, str)}
    if not fits[kind]:
      raise UserError(f"{where} gives {name} as {value!r}; a single {kind.__name__} is needed")
    typed[name] = kind(value)
  return typed
