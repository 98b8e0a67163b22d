"""How an encoder's states become one vector a text: as its folder says."""

import dataclasses
import json

import numpy as np
import pytest

from frozen_jax.backbones import encoder
from frozen_jax.backbones.load_encoder import load_encoder
from frozen_jax.core.errors import UserError
from tests.backbones.encoder_cases import make

HOW = {
  "mean": lambda r: r.mean(0),
  "cls": lambda r: r[0],
  "max": lambda r: r.max(0),
  "lasttoken": lambda r: r[-1],
  "mean_sqrt_len_tokens": lambda r: r.sum(0) / len(r) ** 0.5,
  "weightedmean": lambda r: np.average(r, axis=0, weights=1 + np.arange(len(r))),
}


def steps(path, pooling, normalise=False, kinds=("Transformer", "Pooling")):
  """Writes modules.json and the settings of its Pooling step."""
  named = [*kinds, "Normalize"] if normalise else kinds
  listed = [
    {
      "idx": i,
      "name": str(i),
      "path": f"{i}_{kind}" if i else "",
      "type": f"sentence_transformers.models.{kind}",
    }
    for i, kind in enumerate(named)
  ]
  (path / "modules.json").write_text(json.dumps(listed))
  (path / "1_Pooling").mkdir(exist_ok=True)
  (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def flags(**on):
  modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
  return {"word_embedding_dimension": 24, "include_prompt": True} | {
    f"pooling_mode_{mode}": on.get(mode, False) for mode in modes
  }


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("mode", HOW)
@pytest.mark.parametrize("normalise", [False, True])
def test_pooling_as_the_folder_says(folder, mode, normalise, padding):
  path = folder(make("bert"))
  flag = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}.get(mode, mode)
  flag = "weightedmean_tokens" if mode == "weightedmean" else flag
  steps(path, flags() | {f"pooling_mode_{flag}": True}, normalise)
  loaded = load_encoder(str(path), progress=False)
  assert (loaded.config.pooling, loaded.config.normalise) == (mode, normalise)
  mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
  mask = mask[:, ::-1] if padding == "left" else mask
  values = np.random.default_rng(0).normal(size=(2, 5, 24)).astype(np.float32) - 1.0
  values[mask == 0] = 1e3
  rows = [row[real > 0] for row, real in zip(values, mask, strict=True)]
  expected = np.stack([HOW[mode](row) for row in rows])
  if normalise:
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  pooled = encoder.pool(loaded.config, values, mask)
  np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_pooling_in_its_newer_spelling(folder):
  path = folder(make("bert"))
  steps(path, {"embedding_dimension": 24, "pooling_mode": "cls", "include_prompt": True})
  assert load_encoder(str(path), progress=False).config.pooling == "cls"


@pytest.mark.parametrize(
  "pooling",
  [
    flags(mean_tokens=True, max_tokens=True),
    flags() | {"pooling_mode_supertokens": True},
    flags(mean_tokens=True) | {"word_embedding_dimension": 25},
    {"pooling_mode": "weightedmean", "include_prompt": False},
  ],
)
def test_a_pooling_that_is_not_understood_is_an_error(folder, pooling):
  path = folder(make("bert"))
  steps(path, pooling)
  with pytest.raises(UserError, match="1_Pooling.*pooling"):
    load_encoder(str(path), progress=False)


@pytest.mark.parametrize("kinds", [("Transformer", "Pooling", "Dense"), ("WordEmbeddings",)])
def test_a_step_that_is_not_understood_is_an_error(folder, kinds):
  path = folder(make("bert"))
  steps(path, flags(mean_tokens=True), kinds=kinds)
  with pytest.raises(UserError, match=rf"modules.json.*{kinds[-1]}"):
    load_encoder(str(path), progress=False)


def test_a_config_without_a_pooling(folder):
  loaded = load_encoder(str(folder(make("bert"))), progress=False)
  with pytest.raises(UserError, match="has no pooling"):
    encoder.pool(dataclasses.replace(loaded.config, pooling=""), np.ones((1, 3, 24)))


def test_an_encoder_of_the_hub_comes_with_its_pooling(folder, monkeypatch):
  import huggingface_hub

  path = folder(make("bert"))
  steps(path, flags(mean_tokens=True), normalise=True)

  def snapshot_download(repository, *, revision, allow_patterns, ignore_patterns, tqdm_class):
    files = ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"]
    files += ["config_sentence_transformers.json", "sentence_bert_config.json", "vocab.txt"]
    others = ["onnx/config.json", "onnx/model.safetensors", "1_Dense/model.safetensors", "run.py"]
    others += ["2_Dense/model.safetensors", "2_Dense/config.json", "openvino/modules.json"]
    downloaded = huggingface_hub.utils.filter_repo_objects(
      files + others, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
    )
    assert list(downloaded) == files
    return str(path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  loaded = load_encoder("hf:owner/name", progress=False)
  assert loaded.name == "hf:owner/name" and loaded.config.normalise
