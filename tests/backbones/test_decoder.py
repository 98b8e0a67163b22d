"""The decoder against transformers on tiny random models, and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from frozen_jax.backbones import decoder, stack
from frozen_jax.backbones.config import DecoderConfig, Rope
from frozen_jax.core import paths

TINY = DecoderConfig(
  vocab_size=97,
  width=48,
  layers=3,
  heads=6,
  kv_heads=2,
  head_dim=8,
  mlp_width=80,
  tied=True,
)
VARIANTS = {
  "grouped_tied": {},
  "untied": {"tied": False},
  "every_head_its_own": {"kv_heads": 6},
  "one_key_head": {"kv_heads": 1},
  "wide_heads": {"head_dim": 16, "tied": False},
  "long_wavelengths": {"rope": Rope(1e5), "norm_eps": 1e-3},
}


def variant(name):
  return DecoderConfig(**{**vars(TINY), **VARIANTS[name]})


def torch_twin(config, params):
  """The transformers model that holds the same weights, in float32."""
  model = LlamaForCausalLM(
    LlamaConfig(
      vocab_size=config.vocab_size,
      hidden_size=config.width,
      intermediate_size=config.mlp_width,
      num_hidden_layers=config.layers,
      num_attention_heads=config.heads,
      num_key_value_heads=config.kv_heads,
      head_dim=config.head_dim,
      rms_norm_eps=config.norm_eps,
      rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
      tie_word_embeddings=config.tied,
      attn_implementation="eager",
    )
  ).eval()
  leaves = {path: torch.tensor(np.asarray(leaf)) for path, leaf in paths.flatten(params).items()}
  state = {
    "model.embed_tokens.weight": leaves["embed/tokens"],
    "model.norm.weight": leaves["final_norm/scale"],
    "lm_head.weight": leaves["embed/tokens"] if config.tied else leaves["head/kernel"].T,
  }
  names = {
    "attn_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    **{f"attn/{n}/kernel": f"self_attn.{n}_proj.weight" for n in "qkvo"},
    **{f"mlp/{n}/kernel": f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
  }
  for ours, theirs in names.items():
    for layer in range(config.layers):
      leaf = leaves[f"layers/{ours}"][layer]
      state[f"model.layers.{layer}.{theirs}"] = leaf.T if leaf.ndim == 2 else leaf
  model.load_state_dict(state, strict=True)
  return model


def inputs(config, batch=3, length=11, padding="none"):
  """Embeddings, mask, and the positions that count."""
  tokens = jax.random.randint(jax.random.key(5), (batch, length), 0, config.vocab_size)
  lengths = np.array([length, length - 3, length - 7])[:batch]
  if padding == "none":
    lengths[:] = length
  mask = (np.arange(length)[None] < lengths[:, None]).astype(np.int32)
  if padding == "left":
    mask = mask[:, ::-1].copy()
  return np.asarray(tokens), mask


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_input_gradient_equal_transformers(name):
  config = variant(name)
  params = decoder.random_params(config, jax.random.key(0))
  twin = torch_twin(config, params)

  @jax.jit
  def ours(x, mask, weight):
    def total(x):
      scores = decoder.logits(params, config, decoder.hidden(params, config, x, mask))
      return (scores * weight).sum(), scores

    return jax.grad(total, has_aux=True)(x)

  for padding in ("none", "left", "right"):
    tokens, mask = inputs(config, padding=padding)
    x = np.asarray(decoder.embed(params, config, tokens))
    weight = np.asarray(jax.random.normal(jax.random.key(2), (*mask.shape, config.vocab_size)))
    weight = weight * mask[..., None]
    theirs_x = torch.tensor(x, requires_grad=True)
    positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    theirs = twin(
      inputs_embeds=theirs_x, attention_mask=torch.tensor(mask), position_ids=positions
    ).logits
    (theirs * torch.tensor(weight)).sum().backward()
    gradient, scores = ours(x, mask, weight)
    real = mask > 0
    expected = theirs.detach().numpy()[real]
    np.testing.assert_allclose(scores[real], expected, atol=1e-4, err_msg=padding)
    # Sums over the whole vocabulary: rounding goes by the largest gradients, not by each one.
    bound = 5e-6 * theirs_x.grad.abs().max().item()
    expected = theirs_x.grad.numpy()[real]
    np.testing.assert_allclose(gradient[real], expected, rtol=1e-4, atol=bound, err_msg=padding)
    np.testing.assert_array_equal(gradient[~real], 0)


def test_mask_none_means_that_all_positions_are_real():
  params = decoder.random_params(TINY, jax.random.key(0))
  tokens, mask = inputs(TINY)
  x = decoder.embed(params, TINY, tokens)
  np.testing.assert_allclose(
    decoder.hidden(params, TINY, x), decoder.hidden(params, TINY, x, mask), atol=1e-6
  )


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["grouped_tied", "wide_heads"])
def test_prefill_and_steps_equal_the_full_pass(name, padding):
  config = variant(name)
  params = decoder.random_params(config, jax.random.key(0))
  tokens, mask = inputs(config, padding=padding)
  more = np.asarray(jax.random.randint(jax.random.key(8), (3, 5), 0, config.vocab_size))
  embed = lambda ids: decoder.embed(params, config, ids)
  full_mask = np.concatenate([mask, np.ones_like(more)], axis=1)
  full = decoder.hidden(params, config, embed(np.concatenate([tokens, more], axis=1)), full_mask)
  states, cache = jax.jit(decoder.prefill, static_argnums=(1, 4))(
    params, config, embed(tokens), mask, more.shape[1]
  )
  length = tokens.shape[1]
  np.testing.assert_allclose(states[mask > 0], full[:, :length][mask > 0], atol=1e-4)
  step = jax.jit(decoder.step, static_argnums=1)
  for i in range(more.shape[1]):
    states, cache = step(params, config, embed(more[:, i : i + 1]), cache)
    np.testing.assert_allclose(states[:, 0], full[:, length + i], atol=1e-4)
  assert set(np.asarray(cache.used)) == {length + more.shape[1]}
  np.testing.assert_array_equal(cache.mask, full_mask)
  np.testing.assert_array_equal(cache.position, full_mask.sum(axis=1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unstacked_layers_share_the_memory_of_the_stack_and_compute_the_same(dtype):
  params = decoder.random_params(TINY, jax.random.key(0), dtype)
  layers = stack.unstack(params["layers"])
  assert len(layers) == TINY.layers
  for index, layer in enumerate(layers):
    for separate, stacked in zip(
      jax.tree.leaves(layer), jax.tree.leaves(params["layers"]), strict=True
    ):
      np.testing.assert_array_equal(separate, stacked[index])
      address = stacked.unsafe_buffer_pointer() + index * separate.nbytes
      aligned = address % 64 == 0  # else a CPU device makes a copy
      assert separate.unsafe_buffer_pointer() == address or not aligned
  x, mask = jnp.ones((2, 5, TINY.width)), jnp.ones((2, 5), jnp.int32)
  _, cache = decoder.prefill(params, TINY, x, mask, 2)
  step = jax.jit(decoder.step, static_argnums=1)
  unstacked = step(params | {"layers": layers}, TINY, x[:, :1], cache)
  jax.tree.map(np.testing.assert_array_equal, unstacked, step(params, TINY, x[:, :1], cache))


def test_layers_on_several_devices_stay_stacked():
  mesh = jax.sharding.Mesh(jax.devices(), "fsdp")
  where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  stacked = jax.device_put({"kernel": jnp.ones((3, 8, 8))}, where)
  assert stack.unstack(stacked) is stacked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_in_a_loop_copy_no_cache(dtype):
  params = decoder.random_params(TINY, jax.random.key(0), dtype)
  x, mask = jnp.ones((2, 5, TINY.width)), jnp.ones((2, 5), jnp.int32)
  _, cache = decoder.prefill(params, TINY, x, mask, 14)

  def steps(params, x, cache):
    body = lambda _, carry: decoder.step(params, TINY, *carry)
    return jax.lax.fori_loop(0, 14, body, (x, cache))

  x = x[:, :1].astype(dtype)
  program = jax.jit(steps, donate_argnums=2).lower(params, x, cache).compile().as_text()
  for slots in (cache.k[0], cache.v[0]):
    shape = ",".join(map(str, slots.shape))
    copied = [line for line in program.splitlines() if f"[{shape}]" in line and " copy(" in line]
    assert f"[{shape}]" in program and not copied, copied[0]


def test_empty_rows_and_padded_queries_yield_numbers():
  params = decoder.random_params(TINY, jax.random.key(0))
  tokens, mask = inputs(TINY, padding="left")
  mask[1] = 0
  x = decoder.embed(params, TINY, tokens)
  states, gradient = jax.value_and_grad(
    lambda x: decoder.logits(params, TINY, decoder.hidden(params, TINY, x, mask)).sum()
  )(x)
  assert np.isfinite(states) and np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["attention", "full", "offload"])
def test_rematerialisation_changes_nothing(policy, dtype):
  params = decoder.random_params(TINY, jax.random.key(0), dtype)
  tokens, mask = inputs(TINY, padding="right")
  x = decoder.embed(params, TINY, tokens)

  def run(remat):
    def total(x):
      states = decoder.hidden(params, TINY, x, mask, remat=remat)
      return jnp.square(decoder.logits(params, TINY, states)).sum()

    return jax.jit(jax.value_and_grad(total))(x)

  (loss, gradient), (loss_remat, gradient_remat) = run("none"), run(policy)
  np.testing.assert_allclose(loss, loss_remat, rtol=1e-6)
  scale = np.abs(np.asarray(gradient, np.float32)).max()
  tolerance = 1e-5 if dtype == "float32" else 1e-2
  np.testing.assert_allclose(
    np.asarray(gradient, np.float32) / scale,
    np.asarray(gradient_remat, np.float32) / scale,
    atol=tolerance,
  )


def test_bfloat16_weights_are_close_to_float32():
  config = variant("untied")
  narrow = decoder.random_params(config, jax.random.key(0), jnp.bfloat16)
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
  tokens, mask = inputs(config, padding="right")

  def run(params, dtype):
    x = decoder.embed(wide, config, tokens).astype(dtype)
    weight = jax.random.normal(jax.random.key(3), (config.vocab_size,))

    def total(x):
      states = decoder.hidden(params, config, x, mask)
      scores = decoder.logits(params, config, states)
      return (scores * weight * mask[..., None]).sum(), scores

    gradient, scores = jax.jit(jax.grad(total, has_aux=True))(x)
    return np.asarray(gradient, np.float32), scores[mask > 0]

  (gradient, scores), (gradient_narrow, scores_narrow) = (
    run(wide, "float32"),
    run(narrow, "bfloat16"),
  )
  assert scores_narrow.dtype == np.float32
  assert np.abs(scores - scores_narrow).mean() < 0.02 * np.abs(scores).mean() + 0.01
  assert np.linalg.norm(gradient - gradient_narrow) < 0.05 * np.linalg.norm(gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiled_gradient_holds_no_weight_cotangent(dtype):
  """Asking for the weights' gradient gives zeros that cost nothing, and products stay 2 : 1."""
  params = decoder.random_params(TINY, jax.random.key(0), dtype)
  tokens, mask = inputs(TINY)
  x = decoder.embed(params, TINY, tokens)

  def total(x, params):
    return decoder.logits(params, TINY, decoder.hidden(params, TINY, x, mask)).sum()

  kernels = jax.grad(total, argnums=1)(x, params)["layers"]["mlp"]["down"]["kernel"]
  np.testing.assert_array_equal(np.asarray(kernels, np.float32), 0)
  forward = jax.jit(total).lower(x, params).compile().cost_analysis()["flops"]
  both = jax.jit(jax.grad(total)).lower(x, params).compile().cost_analysis()["flops"]
  assert both < 2.6 * forward  # 3 and more with the weights' cotangents


def test_param_tree_matches_its_axes_and_shapes():
  import re

  for name in VARIANTS:
    config = variant(name)
    shapes = paths.flatten(decoder.param_shapes(config))
    params = paths.flatten(decoder.random_params(config, jax.random.key(0)))
    assert {p: s.shape for p, s in shapes.items()} == {p: a.shape for p, a in params.items()}
    for path, shape in shapes.items():
      hits = [axes for rule, axes in decoder.PARAM_AXES.items() if re.fullmatch(rule, path)]
      assert len(hits) == 1, path
      assert len(hits[0]) == len(shape.shape), path


@pytest.mark.parametrize(
  "change", [{"heads": 5}, {"head_dim": 7}, {"layers": 0}, {"vocab_size": -1}]
)
def test_sizes_that_do_not_fit_are_refused(change):
  with pytest.raises(ValueError):
    DecoderConfig(**{**vars(TINY), **change})


@pytest.mark.parametrize("padding", ["left", "right"])
def test_attention_in_blocks_equals_attention_in_one(monkeypatch, padding):
  from frozen_jax.backbones import attention

  params = decoder.random_params(TINY, jax.random.key(0))
  tokens, mask = inputs(TINY, padding=padding)
  x = decoder.embed(params, TINY, tokens)
  weight = jax.random.normal(jax.random.key(2), x.shape) * mask[..., None]

  def run():
    return jax.jit(
      jax.value_and_grad(lambda x: (decoder.hidden(params, TINY, x, mask) * weight).sum())
    )(x)

  value, gradient = run()
  monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
  assert attention._blocks(tokens.shape[1]) == [(0, 4), (4, 8), (8, 11)]
  value_blocks, gradient_blocks = run()
  np.testing.assert_allclose(value, value_blocks, rtol=1e-5)
  np.testing.assert_allclose(gradient, gradient_blocks, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("block_size", [10, 97, 4096])
def test_the_rms_of_embeddings_is_over_all_tokens(block_size):
  config = DecoderConfig(**{**vars(TINY), "embed_scale": 3.0})
  params = decoder.random_params(config, jax.random.key(0))
  want = 3.0 * np.sqrt(np.square(np.asarray(params["embed"]["tokens"])).mean())
  np.testing.assert_allclose(decoder.embedding_rms(params, config, block_size), want, rtol=1e-6)
