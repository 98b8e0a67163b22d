"""LoRA as llama.cpp's adapter files, held against models merged and then converted to GGUF.

And against llama.cpp itself, where llama-cpp-python is installed.
"""

import functools

import gguf
import jax
import numpy as np
import pytest
import transformers

import frozen_jax
from frozen_jax.backbones import decoder
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.export.gguf_lora import FILE, check_gguf_lora, write_gguf_lora
from frozen_jax.export.merged import write_merged
from frozen_jax.methods.lora import product_names
from tests.backbones import gguf_writing
from tests.backbones.conftest import random_llama, write_gguf
from tests.backbones.decoder_cases import torch_model
from tests.export.conftest import lines_of_the_page, tuned

pytestmark = pytest.mark.program

RANK, ALPHA = 3, 12.0
# What llama.cpp knows by the name of the architecture, as the real models have it.
LIKE_REAL = {"mistral": {"sliding_window": None}}
LIKE_REAL |= dict.fromkeys(("gemma2", "gemma3"), {"query_pre_attn_scalar": 16})
CASES = {  # and what each must be called for llama.cpp
  **{"llama": "llama", "llama-biases-tied": "llama", "mistral": "llama", "mixtral": "llama"},
  **{"qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "smollm3": "smollm3"},
  **{"phi3": "phi3", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3"},
  **{"gpt2": "gpt2", "gpt_neox": "gptneox", "bloom": "bloom"},
}


def with_lora(lm, *targets, **more):
  """A LoRA of these products, or of all."""
  targets = targets or tuple(product_names(paths.flatten(lm.params)))
  settings = {"rank": RANK, "alpha": ALPHA, "targets": targets, **more}
  return tuned(lm, "lora", lora=settings)


def loaded(tmp_path, case):
  model = torch_model(case)
  model.save_pretrained(tmp_path / "base")
  return model, frozen_jax.load_frozen(str(tmp_path / "base"))


def tensors(path):
  return {one.name: np.asarray(one.data) for one in gguf.GGUFReader(path).tensors}


def value(reader, key):
  return reader.fields[key].contents()


@pytest.mark.parametrize("case", CASES)
def test_what_the_file_adds_is_what_merging_adds(case, tmp_path):
  """The rows in llama.cpp's order, fused matrices, every name: all products have an update."""
  base, lm = loaded(tmp_path, case)
  model = with_lora(lm)
  write_gguf_lora(tmp_path, model)
  (tmp_path / "merged").mkdir()
  write_merged(tmp_path / "merged", model)
  whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float()
  old = tensors(gguf_writing.write(tmp_path / "old.gguf", base, tmp_path / "old"))
  new = tensors(gguf_writing.write(tmp_path / "new.gguf", whole, tmp_path / "new"))
  adapter = gguf.GGUFReader(tmp_path / FILE)
  assert value(adapter, "general.architecture") == CASES[case]
  matrices, alpha = tensors(tmp_path / FILE), value(adapter, "adapter.lora.alpha")
  names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in matrices}
  assert {name for name in old if np.abs(new[name] - old[name]).max() > 1e-3} == names
  for name in names:
    a, b = matrices[f"{name}.lora_a"], matrices[f"{name}.lora_b"]
    assert a.shape[0] == b.shape[1]
    np.testing.assert_allclose(new[name] - old[name], alpha / len(a) * b @ a, atol=2e-5)


def test_the_head_of_the_file(tmp_path):
  _, lm = loaded(tmp_path, "llama")
  write_gguf_lora(tmp_path, with_lora(lm, "attn/k", "mlp/down"))
  reader = gguf.GGUFReader(tmp_path / FILE)
  keys = ("general.type", "adapter.type", "adapter.lora.alpha", "general.base_model.0.name")
  assert [value(reader, key) for key in keys] == ["adapter", "lora", ALPHA, lm.name]
  layers, width, kv = lm.config.layers, lm.config.width, lm.config.kv_heads * lm.config.head_dim
  sizes = {"attn_k": (width, kv), "ffn_down": (lm.config.mlp_width, width)}
  assert {name: one.shape for name, one in tensors(tmp_path / FILE).items()} == {
    f"blk.{layer}.{name}.weight.lora_{kind}": shape
    for layer in range(layers)
    for name, (ins, outs) in sizes.items()
    for kind, shape in (("a", (RANK, ins)), ("b", (outs, RANK)))
  }
  assert {one.tensor_type.name for one in reader.tensors} == {"F32"}


@pytest.mark.parametrize("case", ["gptj", "opt"])
def test_a_family_that_is_not_llama_cpps_is_refused(case, tmp_path):
  _, lm = loaded(tmp_path, case)
  with pytest.raises(UserError, match=f"no models of the type '{case}'.*export.format=peft"):
    write_gguf_lora(tmp_path, with_lora(lm))
  assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("method", ["prompt_tuning", "adapters", "fine_tuning"])
def test_another_method_is_refused(method):
  with pytest.raises(UserError, match=f"not what {method} trains .*export.format=adapter"):
    check_gguf_lora({"method": method}, {"part": {}})


# --- llama.cpp itself


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, tokens, peft):
  x = decoder.embed(params, config, tokens)
  return decoder.logits(params, config, decoder.hidden(params, config, x, peft=peft))


@pytest.fixture
def llama_cpp():
  return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same_logits(case, tmp_path, llama_cpp):
  def without_words(writer):
    writer.add_tokenizer_model("no_vocab")
    if CASES[case] not in ("llama", "smollm3"):
      writer.add_vocab_size(99)

  path = tmp_path / "model.gguf"
  gguf_writing.write(path, torch_model(case, **LIKE_REAL.get(case, {})), tmp_path, without_words)
  lm = frozen_jax.load_frozen(str(path))
  model = with_lora(lm)
  write_gguf_lora(tmp_path, model)
  passed, tokens = model.method.pass_params(model.trained, model.frozen), [5, 17, 60, 33, 8, 71]
  found = []
  for updates, file in ((None, None), (passed.peft, str(tmp_path / FILE))):
    how = {"n_ctx": 64, "type_k": 0, "type_v": 0, "logits_all": True, "verbose": False}  # float32
    theirs = llama_cpp.Llama(str(path), lora_path=file, **how)
    theirs.eval(tokens)
    found.append(forward(lm.params, lm.config, np.array([tokens]), updates)[0])
    # llama.cpp takes the GELU from a table of float16.
    bound = 5e-3 if "gelu" in lm.config.activation else 2e-4
    np.testing.assert_allclose(theirs.scores[: len(tokens)], found[-1], atol=bound, rtol=0)
  assert np.abs(found[0] - found[1]).max() > 0.1


def words(writer):
  """A vocabulary of single bytes, in the letters that stand for them in GPT-2's files."""
  letters = list(transformers.convert_slow_tokenizer.bytes_to_unicode().values())
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  tokens = [*letters, "ab", "<end>"]
  writer.add_token_list(tokens)
  writer.add_token_types([gguf.TokenType.NORMAL] * (len(letters) + 1) + [gguf.TokenType.CONTROL])
  writer.add_token_merges(["a b"])
  writer.add_eos_token_id(tokens.index("<end>"))


def test_the_lines_of_the_page_give_the_same_text_here_and_there(tmp_path, monkeypatch, llama_cpp):
  del llama_cpp
  model = random_llama(vocab_size=258)
  model.lm_head.weight.data[np.r_[94:258]] = 0  # neither an end nor half a letter
  write_gguf(tmp_path / "my_model.gguf", model, change=words)
  lm = frozen_jax.load_frozen(str(tmp_path / "my_model.gguf"))
  tuned_model = with_lora(lm)
  (tmp_path / "my_adapter").mkdir()
  write_gguf_lora(tmp_path / "my_adapter", tuned_model)
  monkeypatch.chdir(tmp_path)
  there = {}
  exec(lines_of_the_page("import llama_cpp"), there)
  assert [there["answer"].strip()] == tuned_model.generate(["7 9 11"], max_new_tokens=8)
  assert len(there["answer"]) == 8
