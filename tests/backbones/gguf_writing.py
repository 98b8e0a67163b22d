"""Models of transformers as GGUF files, by the rules of llama.cpp's converter.

What each architecture's class in llama.cpp's conversion/ folder writes, told again: which settings
under which keys, which tensors are turned, cut, stacked or shifted. The names of tensors are the
gguf package's own table.
"""

import json
import math

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama"}
ARCHITECTURES |= {"MixtralForCausalLM": "llama", "SmolLM3ForCausalLM": "smollm3"}
ARCHITECTURES |= {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
ARCHITECTURES |= {"Qwen3MoeForCausalLM": "qwen3moe", "Phi3ForCausalLM": "phi3"}
ARCHITECTURES |= {"GemmaForCausalLM": "gemma", "Gemma2ForCausalLM": "gemma2"}
ARCHITECTURES |= {"Gemma3ForCausalLM": "gemma3", "GPT2LMHeadModel": "gpt2"}
ARCHITECTURES |= {"GPTNeoXForCausalLM": "gptneox", "BloomForCausalLM": "bloom"}


def write(path, model, folder, change=lambda writer: None):
  """Saves the model in the folder, as the converter needs it, and converts that."""
  model.save_pretrained(folder)
  settings = json.loads((folder / "config.json").read_text())
  architecture = ARCHITECTURES[settings["architectures"][0]]
  writer = gguf.GGUFWriter(path, architecture)
  {
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "bloom": _bloom,
  }.get(architecture, _most)(writer, settings, architecture)
  change(writer)
  for name, tensor in _tensors(load_file(folder / "model.safetensors"), settings, architecture):
    writer.add_tensor(name, np.ascontiguousarray(tensor))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _most(writer, s, architecture):
  """TextModel.set_gguf_parameters, and what Llama, Gemma 3 and the experts add."""
  rope = s["rope_parameters"]
  far = rope.get("full_attention", rope)
  writer.add_block_count(s["num_hidden_layers"])
  writer.add_context_length(s["max_position_embeddings"])
  writer.add_embedding_length(s["hidden_size"])
  writer.add_feed_forward_length(s["intermediate_size"])
  writer.add_head_count(s["num_attention_heads"])
  writer.add_head_count_kv(s["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(s["rms_norm_eps"])
  writer.add_rope_freq_base(far["rope_theta"])
  if far["rope_type"] in ("linear", "yarn"):
    writer.add_rope_scaling_type(gguf.RopeScalingType(far["rope_type"]))
    writer.add_rope_scaling_factor(far["factor"])
  if far["rope_type"] == "yarn":
    writer.add_rope_scaling_orig_ctx_len(far["original_max_position_embeddings"])
    if "beta_fast" in far:
      writer.add_rope_scaling_yarn_beta_fast(far["beta_fast"])
      writer.add_rope_scaling_yarn_beta_slow(far["beta_slow"])
  if "sliding_attention" in rope and architecture == "gemma3":
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
  experts = s.get("num_local_experts", s.get("num_experts"))
  if experts:
    writer.add_expert_count(experts)
    writer.add_expert_used_count(s["num_experts_per_tok"])
  if s.get("head_dim"):
    writer.add_key_length(s["head_dim"])
    writer.add_value_length(s["head_dim"])
  if architecture in ("llama", "smollm3"):
    writer.add_vocab_size(s["vocab_size"])
    writer.add_rope_dimension_count(_head_dim(s))
  if architecture == "qwen3moe":
    writer.add_expert_feed_forward_length(s["moe_intermediate_size"])
  if architecture == "gemma3":
    writer.add_sliding_window(s["sliding_window"])
    if s.get("final_logit_softcapping"):
      writer.add_final_logit_softcapping(s["final_logit_softcapping"])


def _phi3(writer, s, _):
  rope = s["rope_parameters"]
  original = s.get("original_max_position_embeddings", s["max_position_embeddings"])
  writer.add_context_length(s["max_position_embeddings"])
  writer.add_rope_scaling_orig_ctx_len(original)
  writer.add_embedding_length(s["hidden_size"])
  writer.add_feed_forward_length(s["intermediate_size"])
  writer.add_block_count(s["num_hidden_layers"])
  writer.add_head_count(s["num_attention_heads"])
  writer.add_head_count_kv(s["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(s["rms_norm_eps"])
  size = int(rope.get("partial_rotary_factor", 1.0) * s["hidden_size"])
  writer.add_rope_dimension_count(size // s["num_attention_heads"])
  writer.add_rope_freq_base(rope["rope_theta"])
  writer.add_sliding_window(s["sliding_window"] or 0)
  if "long_factor" in rope:
    scale = s["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def _gemma(writer, s, architecture):
  writer.add_context_length(s["max_position_embeddings"])
  writer.add_embedding_length(s["hidden_size"])
  writer.add_block_count(s["num_hidden_layers"])
  writer.add_feed_forward_length(s["intermediate_size"])
  writer.add_head_count(s["num_attention_heads"])
  writer.add_head_count_kv(s["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(s["rms_norm_eps"])
  writer.add_key_length(s["head_dim"])
  writer.add_value_length(s["head_dim"])
  if architecture == "gemma2":
    writer.add_attn_logit_softcapping(s["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(s["final_logit_softcapping"])
    writer.add_sliding_window(s["sliding_window"])


def _gpt2(writer, s, _):
  writer.add_block_count(s["n_layer"])
  writer.add_context_length(s["n_positions"])
  writer.add_embedding_length(s["n_embd"])
  writer.add_feed_forward_length(4 * s["n_embd"])
  writer.add_head_count(s["n_head"])
  writer.add_layer_norm_eps(s["layer_norm_epsilon"])


def _gptneox(writer, s, _):
  head_dim = s["hidden_size"] // s["num_attention_heads"]
  writer.add_context_length(s["max_position_embeddings"])
  writer.add_embedding_length(s["hidden_size"])
  writer.add_block_count(s["num_hidden_layers"])
  writer.add_feed_forward_length(s["intermediate_size"])
  writer.add_rope_dimension_count(int(s["rope_parameters"]["partial_rotary_factor"] * head_dim))
  writer.add_head_count(s["num_attention_heads"])
  writer.add_parallel_residual(s["use_parallel_residual"])
  writer.add_layer_norm_eps(s["layer_norm_eps"])


def _bloom(writer, s, _):
  writer.add_context_length(s.get("seq_length", s["hidden_size"]))
  writer.add_embedding_length(s["hidden_size"])
  writer.add_feed_forward_length(4 * s["hidden_size"])
  writer.add_block_count(s["n_layer"])
  writer.add_head_count(s["n_head"])
  writer.add_head_count_kv(s["n_head"])
  writer.add_layer_norm_eps(s["layer_norm_epsilon"])


def _head_dim(s):
  return s.get("head_dim") or s["hidden_size"] // s["num_attention_heads"]


def _tensors(stored, s, architecture):
  layers = s.get("num_hidden_layers", s.get("n_layer"))
  heads = s.get("num_attention_heads", s.get("n_head"))
  kind = next(m for m, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
  names = gguf.get_tensor_name_map(kind, layers)
  for name, tensor in _stacked_experts(stored, s).items():
    if architecture in ("llama", "smollm3"):
      if ".q_proj." in name:
        tensor = permute(tensor, heads)
      if ".k_proj." in name:
        tensor = permute(tensor, s["num_key_value_heads"])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
      tensor = tensor + 1
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
      tensor = tensor.T
    if "query_key_value" in name:
      parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
      tensor = np.concatenate([parts[:, i].reshape(-1, *tensor.shape[1:]) for i in range(3)])
    if architecture == "bloom":
      name = name.removeprefix("transformer.")
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, name
    yield found, tensor
  yield from _divisors(s)


def permute(weight, heads):
  rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
  return rows.swapaxes(1, 2).reshape(weight.shape)


def _stacked_experts(stored, s):
  """The experts of each layer in one tensor, under the name that the converter gives it."""
  names = {"w1": "feed_forward.experts.w1", "w2": "feed_forward.experts.w2"}
  names |= {"w3": "feed_forward.experts.w3"}
  names |= {f"{n}_proj": f"mlp.experts.{n}_proj" for n in ("gate", "up", "down")}
  whole = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
  for layer in range(s["num_hidden_layers"] if len(whole) < len(stored) else 0):
    for theirs, ours in names.items():
      block = "mlp" if "proj" in theirs else "block_sparse_moe"
      each = f"model.layers.{layer}.{block}.experts.{{}}.{theirs}.weight"
      if each.format(0) not in stored:
        continue
      count = s.get("num_local_experts", s.get("num_experts"))
      root = "model.layers" if "proj" in theirs else "layers"
      whole[f"{root}.{layer}.{ours}.weight"] = np.stack(
        [stored[each.format(expert)] for expert in range(count)]
      )
  return whole


def _divisors(s):
  rope = s.get("rope_parameters") or {}
  if rope.get("rope_type") == "llama3":
    size, factor = _head_dim(s), rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    divisors = []
    for i in range(0, size, 2):
      wave = 2 * math.pi * rope["rope_theta"] ** (i / size)
      smooth = (context / wave - low) / (high - low)
      between = 1 / ((1 - smooth) / factor + smooth)
      divisors.append(1 if wave < context / high else factor if wave > context / low else between)
    yield "rope_freqs.weight", np.asarray(divisors, np.float32)
  for length in ("long", "short"):
    if f"{length}_factor" in rope:
      yield f"rope_factors_{length}.weight", np.asarray(rope[f"{length}_factor"], np.float32)
