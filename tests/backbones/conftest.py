"""Tiny random models in the formats that real ones come in."""

import functools

import gguf
import numpy as np
import pytest
import torch
import transformers

SIZES = {
  "vocab_size": 96,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "max_position_embeddings": 128,
  "rope_theta": 5000.0,
}

GGUF_NAMES = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "model.layers": "blk",
}


def random_llama(tied=False, seed=0, **sizes):
  torch.manual_seed(seed)
  config = transformers.LlamaConfig(**(SIZES | sizes), tie_word_embeddings=tied)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.normal_(1.0 if "norm" in name else 0.0, 0.15)
  return model


@pytest.fixture
def llama():
  """`llama(tied=, seed=, **sizes)`: a random torch Llama with weights that matter."""
  return random_llama


@pytest.fixture
def folder(tmp_path):
  """`folder(model, name, **how)`: the model as `save_pretrained` writes it."""

  def save(model, name="model", **how):
    model.save_pretrained(tmp_path / name, **how)
    return tmp_path / name

  return save


def permute(weight, heads):
  """The order of rows that llama.cpp's converter gives Q and K (`LlamaModel.permute`)."""
  rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
  return rows.swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(model):
  config, tensors = model.config, {}
  for name, weight in model.state_dict().items():
    array = weight.detach().numpy()
    if name == "lm_head.weight" and config.tie_word_embeddings:
      continue
    if "q_proj" in name:
      array = permute(array, config.num_attention_heads)
    if "k_proj" in name:
      array = permute(array, config.num_key_value_heads)
    for old, new in GGUF_NAMES.items():
      name = name.replace(old, new)
    tensors[name] = array
  return tensors


def write_gguf(path, model, tensors=None, kind=None, change=lambda writer: None):
  config = model.config
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  change(writer)
  for name, array in (gguf_tensors(model) if tensors is None else tensors).items():
    if isinstance(array, tuple):  # blocks, and of what type they are
      writer.add_tensor(name, array[0], raw_dtype=array[1])
    elif kind is not None and array.ndim == 2:
      writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, np.ascontiguousarray(array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture
def gguf_file(tmp_path):
  """`gguf_file(model, name=, tensors=, kind=, change=)`: the model as a GGUF file."""

  def write(model, name="model.gguf", **how):
    return write_gguf(tmp_path / name, model, **how)

  write.tensors = gguf_tensors
  return write


@pytest.fixture
def torch_logits():
  """`torch_logits(model, tokens, mask=None)`: transformers' logits, float32 numpy [B, T, V]."""

  def run(model, tokens, mask=None):
    tokens = torch.from_numpy(np.asarray(tokens, np.int64))
    more = {}
    if mask is not None:
      mask = torch.from_numpy(np.asarray(mask, np.int64))
      more = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
      return model(tokens, **more).logits.float().numpy()

  return run


@pytest.fixture(scope="session")
def our_logits():
  """`our_logits(loaded, tokens, mask=None)`: the logits of a loaded `Decoder`, numpy [B, T, V]."""
  import jax

  from frozen_jax.backbones import decoder

  @functools.partial(jax.jit, static_argnums=1)
  def forward(params, config, tokens, mask):
    x = decoder.embed(params, config, tokens)
    return decoder.logits(params, config, decoder.hidden(params, config, x, mask))

  def run(loaded, tokens, mask=None):
    tokens = np.asarray(tokens, np.int32)
    mask = None if mask is None else np.asarray(mask, np.int32)
    return np.asarray(forward(loaded.params, loaded.config, tokens, mask))

  return run


@pytest.fixture(scope="session")
def encoder_pair(tmp_path_factory):
  """`encoder_pair(name)`: a torch encoder of encoder_cases, and what is loaded from its folder."""
  from frozen_jax.backbones.load_encoder import load_encoder
  from tests.backbones.encoder_cases import make

  @functools.cache
  def of(name):
    model, folder = make(name), tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    return model, load_encoder(str(folder), progress=False)

  return of
