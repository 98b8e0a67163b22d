"""Reading and writing re-rankers as folders of sentence-transformers' `CrossEncoder`.

The layout is that of transformers' sequence classifiers with one label: config.json,
model.safetensors, the tokenizer's files. In config.json, `sentence_transformers` sets the
activation after the score to none, so that `CrossEncoder.predict` returns the scores that
frozen_jax computes. The heads of BERT, RoBERTa, ELECTRA and ModernBERT are supported. Neither torch
nor sentence-transformers is needed.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from frozen_jax.backbones import assemble, disassemble
from frozen_jax.backbones.families.table import Family
from frozen_jax.backbones.hf_folder import HFFolder, read_json
from frozen_jax.backbones.load import resolve_model_path
from frozen_jax.backbones.load_encoder import Encoder, load_encoder
from frozen_jax.core import files, paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.user_path import local_path
from frozen_jax.modules.score_head import HEAD_ACTIVATIONS, HeadConfig
from frozen_jax.text.tokenizer_files import save_tokenizer

_IDENTITY = "torch.nn.modules.linear.Identity"

# Family -> its class in transformers, and the names of the head's layers in it.
_CLASSES = {
  "bert": ("BertForSequenceClassification", "bert.pooler.dense", "classifier"),
  "roberta": ("RobertaForSequenceClassification", "classifier.dense", "classifier.out_proj"),
  "electra": ("ElectraForSequenceClassification", "classifier.dense", "classifier.out_proj"),
  "modernbert": ("ModernBertForSequenceClassification", "head.dense", "classifier"),
}
_NORM = "head.norm"

# Keys of a tokenizer's config on how it was loaded, or how it truncated other texts.
_DROPPED_KEYS = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy")


@dataclasses.dataclass(frozen=True, eq=False)
class CrossEncoder:
  """An encoder, with the parameters of a scoring head as far as its folder has them.

  head: the options of the head of this kind of encoder. initial_head: the head's parameters in the
  folder, in the layout of `modules.score_head`; all of them for a CrossEncoder, few or none for
  another encoder.
  """

  encoder: Encoder
  head: HeadConfig
  initial_head: dict[str, Any]


def read_cross_encoder(
  name: str, dtype: str = "float32", mesh: Mesh | None = None, progress: bool = True
) -> CrossEncoder:
  """Reads a CrossEncoder's folder, or any encoder's to initialise a re-ranker.

  The scores of frozen_jax are those before the activation that a folder may specify (a sigmoid, by
  sentence-transformers' default): the ranking of passages is the same.

  Args:
    name, dtype, mesh, progress: as in `load_encoder`. The head is always float32.

  Raises:
    UserError: not an encoder whose head is supported, or several labels instead of one score, or
      damaged files.
  """
  encoder = load_encoder(name, dtype, mesh, progress)
  stored = HFFolder(resolve_model_path(str(name), False))
  head = _head_options(stored)
  head_arrays = {}
  for path, (tensor, transposed) in _head_tensors(stored.family, head).items():
    if tensor in stored.shapes:
      array = np.asarray(stored.read(tensor, ()), np.float32)
      head_arrays[path] = array.T if transposed else array
  labels = head_arrays["score/bias"].shape if "score/bias" in head_arrays else (1,)
  if labels != (1,):
    raise UserError(
      f"{name} gives {labels[0]} labels for a text and a re-ranker needs one score; choose a"
      " CrossEncoder with one label"
    )
  initial_head = {path: jnp.asarray(array) for path, array in head_arrays.items()}
  return CrossEncoder(encoder, head, paths.unflatten(initial_head))


def write_cross_encoder(
  folder: str | pathlib.Path,
  base: Encoder,
  weights: Mapping[str, Any],
  head: HeadConfig,
  head_weights: Mapping[str, Any],
  max_length: int,
) -> pathlib.Path:
  """Writes a re-ranker as a CrossEncoder, float32; returns the folder.

  Args:
    folder: created if necessary; a model in it is replaced.
    base: the encoder from which it was initialised, whose config and tokenizer are written.
    weights: the trained encoder's parameters (`ReRanker.weights`).
    head, head_weights: of the re-ranker: `ReRanker.head` and `trainable["head"]`.
    max_length: tokens to which `CrossEncoder` truncates a question with a passage.

  Raises:
    UserError: transformers has another head for this kind of encoder, the encoder has no tokenizer,
      or the folder cannot be written.
  """
  stored = HFFolder(resolve_model_path(base.name, False))
  expected = _head_options(stored)
  if dataclasses.replace(head, dropout=expected.dropout) != expected:
    raise UserError(
      f"a CrossEncoder of the {stored.family.hf_name} type has the head {expected}, and this"
      f" re-ranker has {head}; train it with the usual head (HeadOptions of read_cross_encoder)"
    )
  if base.tokenizer is None:
    raise UserError("this encoder has no tokenizer; add tokenizer.json to its folder")
  config = dataclasses.replace(base.config, pooling="", normalise=False, vector_width=0)
  leaves = assemble.plan_leaves(config, stored.family, "hf")
  tensors = disassemble.stored_tensors(leaves, paths.flatten(weights))
  head_arrays = paths.flatten(head_weights)
  for path, (tensor, transposed) in _head_tensors(stored.family, head).items():
    array = np.asarray(head_arrays[path], np.float32)
    tensors[tensor] = np.ascontiguousarray(array.T if transposed else array)
  folder = local_path(folder)
  data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
  files.write_bytes(folder / "model.safetensors", data)
  _write_tokenizer(folder, base.tokenizer, config.types > 1, max_length)
  base_config = read_json(pathlib.Path(stored.location) / "config.json")
  classifier_config = _classifier_config(base_config, stored.family, head)
  text = json.dumps(classifier_config, indent=2, sort_keys=True) + "\n"
  files.write_bytes(folder / "config.json", text.encode())  # last: it makes the folder a model's
  for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
    (folder / name).unlink(missing_ok=True)  # of a model that was there before
  return folder


def _classifier_config(
  base_config: dict[str, Any], family: Family, head: HeadConfig
) -> dict[str, Any]:
  """config.json of the sequence classifier."""
  added = {
    "architectures": [_CLASSES[family.hf_name][0]],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "classifier_dropout": head.dropout,
    "dtype": "float32",
    "sentence_transformers": {"activation_fn": _IDENTITY},
  }
  dropped = ("_name_or_path", "torch_dtype", "num_labels", "sbert_ce_default_activation_function")
  return {key: value for key, value in base_config.items() if key not in dropped} | added


def _head_options(stored: HFFolder) -> HeadConfig:
  """The head that transformers has for this folder's kind of encoder.

  Raises UserError where it has none, or one that is not supported.
  """
  kind, location = stored.family.hf_name, stored.location
  if kind not in _CLASSES:
    raise UserError(
      f"{location} is of the {kind} type, for which no re-ranker is known; choose one of"
      f" {', '.join(_CLASSES)}"
    )
  values = read_json(pathlib.Path(location) / "config.json")
  dropout = values.get("classifier_dropout")
  dropout = values.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
  try:
    if kind == "bert":
      return HeadConfig(dropout=dropout)
    if kind in ("roberta", "electra"):
      return HeadConfig(
        activation="tanh" if kind == "roberta" else "gelu", dropout=dropout, input_dropout=True
      )
    pooling = values.get("classifier_pooling", "cls")
    return HeadConfig(
      pooling={"cls": "first"}.get(pooling, pooling),
      activation=values.get("classifier_activation", "gelu"),
      dense_bias=values.get("classifier_bias", False),
      norm_eps=stored.config.norm_eps,
      norm_bias=stored.config.norm_bias,
      dropout=values.get("classifier_dropout", 0.0),
    )
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{location}/config.json: {error}; its activations are {list(HEAD_ACTIVATIONS)}"
    ) from None


def _head_tensors(family: Family, head: HeadConfig) -> dict[str, tuple[str, bool]]:
  """Path in the head's tree -> its tensor, and whether that is stored transposed."""
  _, dense, score = _CLASSES[family.hf_name]
  tensors = {"dense/kernel": (f"{dense}.weight", True), "score/kernel": (f"{score}.weight", True)}
  tensors["score/bias"] = (f"{score}.bias", False)
  if head.dense_bias:
    tensors["dense/bias"] = (f"{dense}.bias", False)
  if head.norm_eps:
    tensors["norm/scale"] = (f"{_NORM}.weight", False)
    if head.norm_bias:
      tensors["norm/bias"] = (f"{_NORM}.bias", False)
  return tensors


def _write_tokenizer(
  folder: pathlib.Path, tokenizer: Any, has_types: bool, max_length: int
) -> None:
  """Writes the tokenizer's files, with the maximal length and the inputs of the encoder."""
  types = ["token_type_ids"] if has_types else []
  values = dict.fromkeys(_DROPPED_KEYS) | {
    "model_max_length": max_length,
    "model_input_names": ["input_ids", *types, "attention_mask"],
  }
  try:
    save_tokenizer(tokenizer, folder, **values)
  except OSError as error:
    raise UserError(
      f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder"
    ) from error
