"""What LoRA and full fine-tuning have trained, merged into a folder that transformers loads."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import frozen_jax
from frozen_jax.backbones import decoder
from frozen_jax.backbones.hf_folder import HFFolder
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Prompt
from frozen_jax.decoding.requests import Sampling
from frozen_jax.export.merged import INDEX, check_base, check_merged, write_merged
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.lora import Lora, LoraSettings
from frozen_jax.models.settings import ModelSettings
from frozen_jax.models.tuned_model import TunedModel
from tests.backbones.conftest import random_llama, write_gguf
from tests.backbones.decoder_cases import torch_model

TOLERANCE = 2e-4
TOKENS = np.random.default_rng(0).integers(3, 96, (2, 9))
FAMILIES = (
  *("llama-biases-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"),
  *("smollm3", "mixtral", "qwen3_moe", "gpt2-untied", "gpt_neox", "gptj", "opt", "bloom"),
)
TARGETS = ("attn/q", "attn/v", "mlp/up")  # parts of fused tensors, next to others that stay


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, tokens, peft):
  x = decoder.embed(params, config, tokens)
  return decoder.logits(params, config, decoder.hidden(params, config, x, peft=peft))


def moved(tree):
  """As training changes it: by noise on every number."""
  noise = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: leaf + 0.05 * noise.normal(size=leaf.shape), tree)


def with_lora(lm):
  kernels = paths.flatten(lm.params)
  targets = tuple(one for one in TARGETS if f"layers/{one}/kernel" in kernels)
  lora = LoraSettings(rank=3, alpha=12.0, targets=targets)
  method = Lora.build(lm, {"lora": lora})
  return TunedModel(lm, method, moved(method.init(lm, jax.random.key(0))))


def fine_tuned(lm):
  method = FineTuning.build(lm, {})
  return TunedModel(lm, method, moved(method.init(lm, jax.random.key(0))))


def our_logits(model, tokens=TOKENS):
  passed = model.method.pass_params(model.trained, model.frozen)
  return forward(passed.params, model.lm.config, jnp.asarray(tokens), passed.peft)


def merged(tmp_path, model, **how):
  """(the folder, transformers' model of it)."""
  (tmp_path / "merged").mkdir()
  write_merged(tmp_path / "merged", model, **how)
  loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
  return tmp_path / "merged", loaded.float().eval()


def torch_logits(model, tokens=TOKENS):
  with torch.no_grad():
    return model(torch.from_numpy(tokens)).logits.float().numpy()


def saved(tmp_path, case, dtype=torch.float32):
  torch_model(case).to(dtype).save_pretrained(tmp_path / "base")
  return frozen_jax.load_frozen(str(tmp_path / "base"))


def stored_bytes(folder):
  stored = HFFolder(folder)
  return {name: (stored.dtypes[name], bytes(stored.raw_bytes(name))) for name in stored.shapes}


@pytest.mark.parametrize("case", FAMILIES)
def test_low_rank_updates_of_every_family(case, tmp_path):
  lm = saved(tmp_path, case)
  model = with_lora(lm)
  folder, theirs = merged(tmp_path, model)
  np.testing.assert_allclose(our_logits(model), torch_logits(theirs), atol=TOLERANCE, rtol=0)
  assert np.abs(our_logits(model) - lm.logits(TOKENS)).max() > 100 * TOLERANCE
  old, new = stored_bytes(tmp_path / "base"), stored_bytes(folder)
  changed = {name for name in old if new[name] != old[name]}
  assert old.keys() == new.keys() and changed
  is_target = lambda name: any(one in name for one in ("attn", "attention", "mlp", "fc"))
  assert all(is_target(name) and name.endswith("weight") for name in changed), changed
  assert (folder / "config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()


@pytest.mark.parametrize("case", ["gpt2", "gemma2", "llama", "phi3"])
def test_full_fine_tuning(case, tmp_path):
  model = fine_tuned(saved(tmp_path, case))
  folder, theirs = merged(tmp_path, model)
  np.testing.assert_allclose(our_logits(model), torch_logits(theirs), atol=TOLERANCE, rtol=0)
  again = frozen_jax.load_frozen(str(folder))
  jax.tree.map(np.testing.assert_array_equal, again.params, model.trained["lm"])
  assert again.fingerprint != model.lm.fingerprint


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma"])
def test_the_same_greedy_continuations(case, tmp_path):
  model = with_lora(saved(tmp_path, case))
  _, theirs = merged(tmp_path, model)
  prompts = [TOKENS[0, :5].tolist(), TOKENS[1].tolist(), TOKENS[0, 3:6].tolist()]
  found = [one.ids for (one,) in model.complete([Prompt(ids) for ids in prompts], Sampling(6))]
  for ids, ours in zip(prompts, found, strict=True):
    out = theirs.generate(
      torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=list(model.lm.end_ids)
    )[0, len(ids) :].tolist()
    assert [token for token in out if token not in model.lm.end_ids] == ours


def test_a_bfloat16_base_keeps_its_dtype_and_what_is_not_changed_its_bytes(tmp_path):
  lm = saved(tmp_path, "gpt2", torch.bfloat16)
  model = with_lora(lm)
  folder, theirs = merged(tmp_path, model)
  old, new = stored_bytes(tmp_path / "base"), stored_bytes(folder)
  assert {dtype for dtype, _ in new.values()} == {"BF16"}
  changed = {name for name in old if old[name] != new[name]}
  layers = range(lm.config.layers)
  assert changed == {
    f"transformer.h.{n}.{one}.weight" for n in layers for one in ("attn.c_attn", "mlp.c_fc")
  }
  before, after = (
    HFFolder(path).read("transformer.h.1.attn.c_attn.weight", ())
    for path in (tmp_path / "base", folder)
  )
  keys = slice(lm.config.width, 2 * lm.config.width)  # between queries and values, in one tensor
  np.testing.assert_array_equal(before[:, keys], after[:, keys])
  update = {name: leaf[1] for name, leaf in model.trained["lora"]["attn"]["q"].items()}
  wanted = np.float32(before[:, : keys.start]) + update["a"] @ update["b"] * 4.0
  np.testing.assert_allclose(np.float32(after[:, : keys.start]), wanted, rtol=2**-8)


def test_weights_above_a_size_are_shards_with_an_index(tmp_path):
  model = with_lora(saved(tmp_path, "llama"))
  folder, theirs = merged(tmp_path, model, shard_bytes=30_000)
  files = sorted(path.name for path in folder.glob("*.safetensors"))
  assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 2
  index = json.loads((folder / INDEX).read_text())
  assert set(index["weight_map"].values()) == set(files)
  assert index["weight_map"].keys() == stored_bytes(tmp_path / "base").keys()
  np.testing.assert_allclose(our_logits(model), torch_logits(theirs), atol=TOLERANCE, rtol=0)


def test_a_sharded_base_without_prefix_and_with_files_of_no_use(tmp_path):
  torch_model("gpt2").transformer.save_pretrained(tmp_path / "base", max_shard_size="20KB")
  (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"a pickle")
  lm = frozen_jax.load_frozen(str(tmp_path / "base"))
  model = with_lora(lm)
  folder, theirs = merged(tmp_path, model)
  assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
  np.testing.assert_allclose(our_logits(model), torch_logits(theirs), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_base_gets_a_config(tied, tmp_path):
  base = random_llama(tied)
  lm = frozen_jax.load_frozen(str(write_gguf(tmp_path / "base.gguf", base)))
  for model in (with_lora(lm), fine_tuned(lm)):
    own = tmp_path / model.method.name
    own.mkdir()
    folder, theirs = merged(own, model)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    np.testing.assert_allclose(our_logits(model), torch_logits(theirs), atol=TOLERANCE, rtol=0)


def test_a_gguf_base_that_config_json_would_not_describe_is_refused(tmp_path):
  scale = lambda writer: writer.add_float32("llama.rope.scaling.factor", 2.0)
  linear = lambda writer: (writer.add_string("llama.rope.scaling.type", "linear"), scale(writer))
  path = write_gguf(tmp_path / "base.gguf", random_llama(), change=linear)
  model = with_lora(frozen_jax.load_frozen(str(path)))
  (tmp_path / "merged").mkdir()
  with pytest.raises(UserError, match="no config.json.*base.gguf.*'llama'.*model.name.*adapter"):
    write_merged(tmp_path / "merged", model)
  assert list((tmp_path / "merged").iterdir()) == []


@pytest.mark.parametrize(
  "method, parts",
  [
    ("prompt_tuning", {"prompt": {}}),
    ("adapters", {"adapters": {}}),
    ("a_recursion_on_lora", {"lora": {}, "connector": {}}),
  ],
)
def test_what_is_no_change_of_weights_is_refused_with_what_would_do(method, parts):
  with pytest.raises(UserError, match=f"what {method} trains.*config.export.format=adapter writes"):
    check_merged({"method": method}, parts)


def test_lora_and_fine_tuning_are_merged():
  check_merged({"method": "lora"}, {"lora": {}})
  check_merged({"method": "fine_tuning"}, {"lm": {}})


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"quantize": "int4"}, "quantised to int4 .model.quantize.*format=adapter"),
    ({"num_layers": 2}, "the first 2 layers.*model.num_layers.*format=adapter"),
  ],
)
def test_bases_that_are_refused(changes, said):
  settings = ModelSettings(name="base")
  check_base(settings)
  with pytest.raises(UserError, match=said):
    check_base(dataclasses.replace(settings, **changes))
