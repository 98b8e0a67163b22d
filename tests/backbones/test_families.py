"""Every decoder family against transformers on tiny random models, read from their own folders.

For each: logits and the gradient to the input embeddings with both paddings, what follows a cache,
eight devices against one.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from frozen_jax.backbones import decoder, rope
from frozen_jax.backbones.cache import with_free_slots
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.decoder_cases import CASES, torch_model
from tests.backbones.dequantizing import dequantized, is_quantized

pytestmark = pytest.mark.program

LENGTH = 13
EACH_FAMILY = {kind: case for case, (kind, _) in reversed(CASES.items())}.values()
# Where no mask is given: it is then one of ones, before a layer is reached. Each kind of positions,
# and the rotary embeddings that depend on how long a text is.
WITHOUT_MASK = {"llama", "llama-dynamic", "llama-longrope-short", "phi3-longrope", "opt", "bloom"}

hidden = jax.jit(decoder.hidden, static_argnums=1)
step = jax.jit(decoder.step, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def full_logits(params, config, tokens, mask):
  x = decoder.embed(params, config, tokens)
  return decoder.logits(params, config, decoder.hidden(params, config, x, mask))


@functools.partial(jax.jit, static_argnums=1)
def cached_logits(params, config, tokens, mask):
  """Those of the last token are of a step after the cache of the others."""
  x = decoder.embed(params, config, tokens)
  states, cache = decoder.prefill(params, config, x[:, :-1], mask[:, :-1], 1)
  last, _ = decoder.step(params, config, x[:, -1:], cache)
  return decoder.logits(params, config, jnp.concatenate([states, last], axis=1))


def inputs(padding, vocab_size=99):
  tokens = np.random.default_rng(3).integers(3, vocab_size, (3, LENGTH))
  mask = np.ones_like(tokens)
  for row, missing in enumerate((0, 3, 6)):
    if padding == "right":
      mask[row, LENGTH - missing :] = 0
    if padding == "left":
      mask[row, :missing] = 0
  return tokens * mask, mask


def theirs(model, tokens, mask, weights):
  """Logits, and the gradient of their weighted sum to the input embeddings, row by row.

  Each row goes alone, without its padding and through a fresh copy: dynamic scalings of
  transformers depend on the whole batch and on the longest text of all calls before.
  """
  logits = np.zeros((*tokens.shape, weights.shape[-1]), np.float32)
  gradient = None
  for row in range(len(tokens)):
    real, fresh = mask[row] > 0, copy.deepcopy(model)
    embeds = fresh.get_input_embeddings()(torch.from_numpy(tokens[row : row + 1, real])).detach()
    embeds.requires_grad_(True)
    row_logits = fresh(inputs_embeds=embeds).logits
    (row_logits[0] * torch.from_numpy(weights[row, real])).sum().backward()
    if gradient is None:
      gradient = np.zeros((*tokens.shape, embeds.shape[-1]), np.float32)
    logits[row, real] = row_logits[0].detach().numpy()
    gradient[row, real] = embeds.grad[0].numpy()
  return logits, gradient


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """`models(case)` -> the torch model and ours, loaded from its folder; built once a case."""
  pairs = {}

  def get(case):
    if case not in pairs:
      model = torch_model(case)
      folder = tmp_path_factory.mktemp(case)
      model.save_pretrained(folder)
      pairs[case] = model, load_decoder(str(folder), progress=False)
    return pairs[case]

  return get


@pytest.mark.parametrize("case", CASES)
def test_logits_gradient_and_decoding(case, models):
  model, loaded = models(case)
  config = loaded.config
  weights = np.random.default_rng(4).normal(size=(3, LENGTH, 99)).astype(np.float32) / 10

  @jax.jit
  def ours(params, tokens, mask):
    def weighted(x):
      logits = decoder.logits(params, config, decoder.hidden(params, config, x, mask))
      real = 1 if mask is None else mask[..., None]
      return (logits * weights * real).sum(), logits

    x = decoder.embed(params, config, tokens)
    gradient, logits = jax.grad(weighted, has_aux=True)(x)
    return logits, gradient

  for padding in ("none", "right", "left") if case in WITHOUT_MASK else ("right", "left"):
    tokens, mask = inputs(padding)
    want = theirs(model, tokens, mask, weights)
    mask_or_none = None if padding == "none" else mask
    for got, wanted in zip(ours(loaded.params, tokens, mask_or_none), want, strict=True):
      real = mask > 0
      largest = np.abs(wanted).max()
      assert largest > 0.05, "the model computes nothing to compare"
      difference = np.abs(np.asarray(got)[real] - wanted[real]).max()
      assert difference < 1e-4, (padding, difference, largest)


@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_cache_equals_the_full_pass(case, models):
  """Three continuations of one text, in one pass after its cache, and the first token by token."""
  _, loaded = models(case)
  config, params = loaded.config, loaded.params
  depends = config.rope is not None and config.rope.kind in rope.DEPENDS_ON_LENGTH
  lengths = (4, 4, 4) if depends else (4, 2, 3)
  more = np.random.default_rng(5).integers(3, 99, (3, 3, 4))  # [B, continuations, tokens]
  real = np.arange(4) < np.array(lengths)[:, None]
  continuation = np.repeat(np.arange(3), 4)
  attention_mask = (
    (continuation[:, None] == continuation) & np.tri(12, dtype=bool) & real.reshape(-1)
  )
  position_ids = np.broadcast_to(
    np.minimum(np.arange(4), np.array(lengths)[:, None] - 1), (3, 3, 4)
  )
  embed = lambda ids: decoder.embed(params, config, jnp.asarray(ids))

  @jax.jit
  def cached(tokens, mask):
    text, cache = decoder.prefill(
      params, config, embed(tokens), mask, mask.sum(1) * 0 + 4, free_slots=0
    )
    assert cache.mask.shape[1] == LENGTH
    states = decoder.hidden_after_cache(
      params,
      config,
      embed(more.reshape(3, 12)),
      cache,
      jnp.asarray(position_ids.reshape(3, 12)),
      jnp.broadcast_to(attention_mask, (3, 12, 12)),
    )
    return text, states, with_free_slots(cache, 4)

  for padding in ("left", "right"):
    tokens, mask = inputs(padding)
    text, states, cache = cached(tokens, jnp.asarray(mask))
    by_token = []
    for index in range(4):
      state, cache = step(params, config, embed(more[:, 0, index : index + 1]), cache)
      by_token.append(np.asarray(state))
    full_tokens = np.concatenate([np.repeat(tokens, 3, axis=0), more.reshape(9, 4)], axis=1)
    full_mask = np.concatenate([np.repeat(mask, 3, axis=0), np.tile(real, (3, 1))], axis=1)
    full = np.asarray(hidden(params, config, embed(full_tokens), full_mask))
    full = full.reshape(3, 3, LENGTH + 4, -1)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5, err_msg=padding)
    close(np.asarray(text)[mask > 0], full[:, 0, :LENGTH][mask > 0])
    close(np.concatenate(by_token, axis=1), full[:, 0, LENGTH:])
    close(np.asarray(states).reshape(3, 3, 4, -1)[:, real], full[:, :, LENGTH:][:, real])


@pytest.mark.parametrize("case", sorted(EACH_FAMILY))
def test_eight_devices_equal_one(case, models):
  _, one_loaded = models(case)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  eight_loaded = load_decoder(one_loaded.name, mesh=mesh, progress=False)
  assert one_loaded.fingerprint == eight_loaded.fingerprint
  sharded = [a for a in jax.tree.leaves(eight_loaded.params) if not a.sharding.is_fully_replicated]
  assert sharded

  tokens, mask = inputs("left")
  one, eight = (
    np.asarray(full_logits(loaded.params, one_loaded.config, tokens, mask))[mask > 0]
    for loaded in (one_loaded, eight_loaded)
  )
  np.testing.assert_allclose(eight, one, atol=2e-5)


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "gpt_neox"])
def test_the_checkpoint_of_a_bare_model_is_read(case, tmp_path):
  model = torch_model(case)
  model.save_pretrained(tmp_path / "whole")
  tied = model.config.tie_word_embeddings
  model.base_model.save_pretrained(tmp_path / "bare")
  if not tied:
    with pytest.raises(UserError, match="missing"):
      load_decoder(str(tmp_path / "bare"), progress=False)
    return
  full, bare = (load_decoder(str(tmp_path / n), progress=False) for n in ("whole", "bare"))
  assert jax.tree.all(jax.tree.map(np.array_equal, full.params, bare.params))


# Each family in one kind, by turns; in both those whose matrices are stored in a way of their own:
# apart, transposed, in one with q, k and v, for each expert, for each head.
LAYOUTS = ("llama", "gpt2", "phi3", "mixtral", "gpt_neox")
QUANTIZED = [
  (kind, case)
  for index, case in enumerate(sorted(EACH_FAMILY))
  for turn, kind in enumerate(("int8", "int4"))
  if case in LAYOUTS or turn == index % 2
]


@pytest.mark.parametrize("kind, case", QUANTIZED)
def test_quantised_weights_compute_what_dequantised_ones_do(kind, case, models):
  """In cached decoding as in a pass over the whole text; int8 is near the original."""
  _, plain = models(case)
  config = plain.config
  quantized = load_decoder(plain.name, quantize=kind, progress=False).params
  assert sum(map(is_quantized, jax.tree.leaves(quantized, is_leaf=is_quantized))) >= 5
  tokens, mask = inputs("left")
  real = mask > 0
  ours = np.asarray(cached_logits(quantized, config, tokens, mask))
  expected = np.asarray(full_logits(dequantized(quantized), config, tokens, mask))
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours[real], expected[real], atol=2e-5)
  if kind == "int8" and not config.experts:  # rounding may send a token to another expert
    original = np.asarray(full_logits(plain.params, config, tokens, mask))[real]
    assert np.linalg.norm(ours[real] - original) / np.linalg.norm(original) < 0.1
