"""PEFT parameters within the frozen layers against PEFT and torch, and the decoder's invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import torch

from frozen_jax.backbones import decoder
from frozen_jax.backbones.load import load_decoder
from tests.backbones.decoder_cases import torch_model

pytestmark = pytest.mark.program

CASES = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "bloom")
ROTARY = ("llama", "qwen2", "gpt_neox", "mistral-full")
LENGTH, RANK, PREFIX = 11, 3, 4
# The linear layers of a family by their names in transformers, and in this project.
NAMED = {
  "llama": {"q_proj": "attn/q", "v_proj": "attn/v", "o_proj": "attn/o", "down_proj": "mlp/down"},
  "gpt_neox": {"dense": "attn/o", "dense_h_to_4h": "mlp/up"},
}


def tokens_and_mask():
  tokens = np.random.default_rng(3).integers(3, 99, (2, LENGTH))
  mask = np.ones_like(tokens)
  mask[1, :4] = 0  # on the left
  return tokens * mask, mask


@pytest.fixture
def loaded(tmp_path):
  def load(case):
    model = torch_model(case)
    model.save_pretrained(tmp_path)
    return model, load_decoder(str(tmp_path), progress=False)

  return load


def random_like(shapes, seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 100))
  return jax.tree.map(lambda s: 0.3 * jax.random.normal(next(keys), s), shapes, is_leaf=_is_shape)


def _is_shape(x):
  return isinstance(x, tuple)


def peft_shapes(config):
  """The shapes of a tree with every kind of PEFT parameters."""
  layers, width, dim = config.layers, config.width, config.head_dim
  outputs = {"attn": {"q": config.heads * dim, "v": config.kv_heads * dim}}
  outputs["mlp"] = {"up": config.mlp_width}
  low = lambda out: {"a": (layers, width, RANK), "b": (layers, RANK, out)}
  adapter = {
    "down": {"kernel": (layers, width, 5), "bias": (layers, 5)},
    "up": {"kernel": (layers, 5, width), "bias": (layers, width)},
  }
  keys = (layers, PREFIX, config.kv_heads, dim)
  return {
    "lora": {block: {n: low(o) for n, o in named.items()} for block, named in outputs.items()},
    "adapters": {"attn": adapter, "mlp": adapter},
    "prefix": {"k": keys, "v": keys},
  }


@functools.partial(jax.jit, static_argnums=1)
def logits(params, config, tokens, mask, peft):
  x = decoder.embed(params, config, jnp.asarray(tokens))
  return decoder.logits(params, config, decoder.hidden(params, config, x, mask, peft=peft))


@pytest.mark.parametrize("case", NAMED)
def test_lora_is_that_of_peft(case, loaded):
  model, ours = loaded(case)
  named, config = NAMED[case], ours.config
  options = hf_peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=list(named))
  wrapped = hf_peft.get_peft_model(model, options).eval()
  peft = {"lora": {"attn": {}, "mlp": {}}}
  modules = {}
  for name, module in wrapped.named_modules():
    if not hasattr(module, "lora_A"):
      continue
    with torch.no_grad():
      module.lora_B["default"].weight.normal_(0, 0.3)
    path = named[name.split(".")[-1]]
    modules.setdefault(path, []).append(module)
  assert sorted(modules) == sorted(named.values())
  for path, of_layers in modules.items():
    assert len(of_layers) == config.layers
    block, linear = path.split("/")
    stack = lambda weights: jnp.stack([w.weight.detach().numpy().T for w in weights])
    a, b = (stack([getattr(m, f"lora_{x}")["default"] for m in of_layers]) for x in "AB")
    peft["lora"][block][linear] = {"a": a, "b": b * 2}  # alpha / r
  tokens, mask = tokens_and_mask()
  positions = torch.from_numpy((mask.cumsum(1) - 1).clip(0))
  with torch.no_grad():
    theirs = wrapped(
      torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask), position_ids=positions
    ).logits.numpy()
  ours_logits = logits(ours.params, config, tokens, mask, peft)
  np.testing.assert_allclose(np.asarray(ours_logits)[mask > 0], theirs[mask > 0], atol=1e-4)
  without = logits(ours.params, config, tokens, mask, None)
  assert np.abs(np.asarray(ours_logits - without)).max() > 0.1


@pytest.mark.parametrize("case", ROTARY)
def test_a_prefix_is_that_of_peft(case, loaded):
  model, ours = loaded(case)
  config = ours.config
  prefix = random_like(peft_shapes(config))["prefix"]
  cache = peft_cache(model, prefix)
  tokens, _ = tokens_and_mask()
  with torch.no_grad():
    theirs = model(torch.from_numpy(tokens), past_key_values=cache).logits.numpy()
  ours_logits = logits(ours.params, config, tokens, np.ones_like(tokens), {"prefix": prefix})
  np.testing.assert_allclose(ours_logits, theirs, atol=1e-4)


def peft_cache(model, prefix):
  """The cache that PEFT's prefix tuning passes to a model, which contains the prefix."""
  from transformers import DynamicCache

  cache = DynamicCache(config=model.config)
  for layer in range(model.config.num_hidden_layers):
    k, v = (torch.tensor(np.asarray(prefix[n][layer])).transpose(0, 1)[None] for n in "kv")
    cache.update(k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1), layer)
  return cache


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_and_padding_with_all_peft_parameters(case, loaded):
  _, ours = loaded(case)
  params, config = ours.params, ours.config
  peft = random_like(peft_shapes(config))
  tokens, mask = tokens_and_mask()
  full = np.asarray(logits(params, config, tokens, mask, peft))
  short = np.asarray(logits(params, config, tokens[1:, 4:], mask[1:, 4:], peft))
  np.testing.assert_allclose(full[1, 4:], short[0], atol=2e-5)

  x = decoder.embed(params, config, jnp.asarray(tokens))
  prompt_mask = jnp.asarray(mask[:, :-3])
  prefill = jax.jit(decoder.prefill, static_argnums=(1, 4))
  states, cache = prefill(params, config, x[:, :-3], prompt_mask, 3, peft=peft)
  cached_states, longer = [states], cache
  step = jax.jit(decoder.step, static_argnums=1)
  for index in range(LENGTH - 3, LENGTH):
    state, longer = step(params, config, x[:, index : index + 1], longer, peft=peft)
    cached_states.append(state)
  cached = decoder.logits(params, config, jnp.concatenate(cached_states, axis=1))
  np.testing.assert_allclose(np.asarray(cached)[mask > 0], full[mask > 0], atol=2e-5)

  # The last three tokens as a continuation, twice, after the cache of the others.
  attention_mask = jnp.broadcast_to(jnp.kron(jnp.eye(2), jnp.tri(3)) > 0, (2, 6, 6))
  position_ids = jnp.broadcast_to(jnp.tile(jnp.arange(3), 2), (2, 6))
  twice = jnp.tile(x[:, -3:], (1, 2, 1))
  hidden_after_cache = jax.jit(decoder.hidden_after_cache, static_argnums=1)
  states = hidden_after_cache(params, config, twice, cache, position_ids, attention_mask, peft=peft)
  scored = np.asarray(decoder.logits(params, config, states))
  np.testing.assert_allclose(scored, np.tile(full[:, -3:], (1, 2, 1)), atol=2e-5)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_gradients_of_all_peft_parameters_are_right(case, loaded):
  _, ours = loaded(case)
  params, config = ours.params, ours.config
  peft = random_like(peft_shapes(config))
  tokens, mask = tokens_and_mask()
  weight = jax.random.normal(jax.random.key(9), (*tokens.shape, config.vocab_size)) / 100

  @jax.jit
  def total(peft):
    return (logits(params, config, tokens, mask, peft) * weight * mask[..., None]).sum()

  gradient = jax.jit(jax.grad(total))(peft)
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
  direction = random_like(peft_shapes(config), seed=1)
  moved = lambda by: float(total(jax.tree.map(lambda a, b: a + by * b, peft, direction)))
  expected = (moved(1e-3) - moved(-1e-3)) / 2e-3
  actual = sum(
    jax.tree.leaves(jax.tree.map(lambda a, b: float((a * b).sum()), gradient, direction))
  )
  assert actual == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("case", ["llama-biases-tied", "gemma2", "gpt2", "gpt_neox", "opt"])
def test_full_fine_tuning_has_the_gradients_of_torch(case, loaded, tmp_path):
  model, ours = loaded(case)
  config = ours.config
  tokens, _ = tokens_and_mask()
  tokens = np.maximum(tokens, 3)  # torch gives the padding's row no gradient
  ids = jnp.asarray(tokens)
  weight = np.random.default_rng(5).normal(size=(2, LENGTH, config.vocab_size)).astype(np.float32)

  @jax.jit
  def total(params):
    x = decoder.embed(params, config, ids, trained=True)
    states = decoder.hidden(params, config, x, trained=True)
    return (decoder.logits(params, config, states, trained=True) * weight).sum()

  gradient = jax.grad(total)(ours.params)
  (model(torch.from_numpy(tokens)).logits * torch.from_numpy(weight)).sum().backward()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.grad)
  model.save_pretrained(tmp_path / "gradients")
  theirs = load_decoder(str(tmp_path / "gradients"), progress=False).params

  def compare(path, actual, expected):
    size = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(
      actual, expected, atol=1e-4 * size, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(compare, gradient, theirs)
