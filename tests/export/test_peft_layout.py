"""The layouts of PEFT: a prefix's rows, the modules that a family fuses, their names."""

import numpy as np
import pytest

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.export import peft, peft_layout
from frozen_jax.export.peft_reading import CONFIG, TENSORS
from frozen_jax.methods.lora import LoraSettings
from frozen_jax.pipelines.load_adapter import load_adapter
from frozen_jax.text.templates import make_template
from tests.export.peft_cases import GPT, SIZES, P, lm, prefix, updates


def test_the_order_of_a_prefix_is_position_layer_key_value_head():
  rows = peft_layout.prefix_rows(**prefix())
  split = rows.reshape(P, SIZES.layers, 2, SIZES.kv_heads, SIZES.head_dim)
  np.testing.assert_array_equal(split[3, 1, 0, 1], prefix()["k"][1, 3, 1])
  np.testing.assert_array_equal(split[2, 0, 1, 0], prefix()["v"][0, 2, 0])


def fused_updates(family, targets, seed=0, **changes):
  config = DecoderConfig(**{**vars(SIZES), "kv_heads": 4, **changes})
  lora = LoraSettings(rank=3, alpha=6.0, targets=targets)
  tree = updates(lora, config)
  return peft.lora_adapter(tree, lora, config, family), tree, config


def product(tensors, module):
  first, second = (tensors[f"base_model.model.{module}.lora_{kind}.weight"] for kind in "AB")
  return second @ first  # [out, in]


def test_products_that_a_module_fuses_keep_their_own_updates():
  adapter, tree, config = fused_updates("gpt2", ("attn/q", "attn/v", "mlp/up"), **GPT)
  assert (adapter.config["r"], adapter.config["lora_alpha"]) == (6, 12)  # alpha / r as it was
  found = product(adapter.tensors, "transformer.h.1.attn.c_attn")
  q, v = (tree["attn"][name]["a"][1] @ tree["attn"][name]["b"][1] for name in "qv")
  size = config.heads * config.head_dim
  np.testing.assert_allclose(found, np.concatenate([q, 0 * q, v], 1).T[: 3 * size], atol=1e-5)
  up = product(adapter.tensors, "transformer.h.0.mlp.c_fc")
  np.testing.assert_allclose(
    up, (tree["mlp"]["up"]["a"][0] @ tree["mlp"]["up"]["b"][0]).T, atol=1e-5
  )
  assert adapter.config["fan_in_fan_out"] is True


def test_the_heads_of_a_module_hold_query_key_and_value_each():
  adapter, tree, config = fused_updates("gpt_neox", ("attn/k",), **GPT)
  assert adapter.config["r"] == 3
  found = product(adapter.tensors, "gpt_neox.layers.0.attention.query_key_value")
  by_head = found.reshape(config.heads, 3, config.head_dim, config.width)
  k = (tree["attn"]["k"]["a"][0] @ tree["attn"]["k"]["b"][0]).T
  np.testing.assert_allclose(by_head[:, 1], k.reshape(by_head[:, 1].shape), atol=1e-5)
  assert not by_head[:, [0, 2]].any()


@pytest.mark.parametrize("family, more", [("gpt2", GPT), ("gpt_neox", GPT), ("phi3", {})])
def test_a_fused_update_comes_back_with_the_same_rows(family, more, tmp_path):
  targets = ("attn/q", "attn/k", "attn/v", "mlp/up") + (() if more else ("mlp/gate",))
  first, _, config = fused_updates(family, targets, **more)
  assert first.config["r"] == 9
  for place, adapter in (("one", first), ("two", None)):
    where = tmp_path / place
    if adapter is None:
      model = load_adapter(tmp_path / "one", lm(family, **vars(config)))
      adapter = peft.peft_adapter(model)
    peft.write_peft(where, adapter, peft.BaseModel("tiny"), make_template("plain"))
  assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()
  assert (tmp_path / "one" / CONFIG).read_bytes() == (tmp_path / "two" / CONFIG).read_bytes()


@pytest.mark.parametrize(
  "family, targets, names",
  [
    ("llama", ("attn/q", "mlp/down"), ["down_proj", "q_proj"]),
    ("gpt2", ("attn/o",), ["attn.c_proj"]),
    ("gpt2", ("mlp/down",), ["mlp.c_proj"]),
    ("gpt2", ("attn/o", "mlp/down"), ["c_proj"]),
    ("gpt_neox", ("attn/o", "mlp/up"), ["dense", "dense_h_to_4h"]),
    ("bloom", ("attn/q", "attn/k"), ["query_key_value"]),
    ("opt", ("mlp/up", "mlp/down"), ["fc1", "fc2"]),
    ("phi3", ("mlp/up",), ["gate_up_proj"]),
  ],
)
def test_targets_have_the_names_of_the_family(family, targets, names):
  more = {} if family in ("llama", "phi3") else GPT
  assert fused_updates(family, targets, **more)[0].config["target_modules"] == names
