"""Every decoder family against transformers on tiny random models, read from their own folders.

For each: logits and the gradient to the input embeddings with both paddings, cached decoding, 8
devices against one.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from frozen_jax.backbones import decoder, rope
from frozen_jax.backbones.load import load_decoder
from frozen_jax.backbones.quantized import Quantized, dense
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.decoder_cases import CASES, torch_model

LENGTH = 13


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
  transformers look at the whole batch and remember the longest text that they saw.
  """
  logits = np.zeros((*tokens.shape, weights.shape[-1]), np.float32)
  gradient = None
  for row in range(len(tokens)):
    real, fresh = mask[row] > 0, copy.deepcopy(model)
    embeds = fresh.get_input_embeddings()(torch.from_numpy(tokens[row : row + 1, real])).detach()
    embeds.requires_grad_(True)
    given = fresh(inputs_embeds=embeds).logits
    (given[0] * torch.from_numpy(weights[row, real])).sum().backward()
    if gradient is None:
      gradient = np.zeros((*tokens.shape, embeds.shape[-1]), np.float32)
    logits[row, real] = given[0].detach().numpy()
    gradient[row, real] = embeds.grad[0].numpy()
  return logits, gradient


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """`models(case)` -> the torch model and what we read from its folder; made once a case."""
  made = {}

  def get(case):
    if case not in made:
      model = torch_model(case)
      folder = tmp_path_factory.mktemp(case)
      model.save_pretrained(folder)
      made.clear()  # tests come case by case
      made[case] = model, load_decoder(str(folder), progress=False)
    return made[case]

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

  for padding in ("none", "right", "left"):
    tokens, mask = inputs(padding)
    want = theirs(model, tokens, mask, weights)
    given = None if padding == "none" else mask
    for got, wanted in zip(ours(loaded.params, tokens, given), want, strict=True):
      real = mask > 0
      largest = np.abs(wanted).max()
      assert largest > 0.05, "the model does nothing that could be compared"
      difference = np.abs(np.asarray(got)[real] - wanted[real]).max()
      assert difference < 1e-4, (padding, difference, largest)


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_equals_the_full_pass(case, models):
  _, loaded = models(case)
  config, params = loaded.config, loaded.params
  tokens, mask = inputs("left")
  ahead = 5
  embedded = decoder.embed(params, config, jnp.asarray(tokens))
  mask = jnp.asarray(mask)

  full = jax.jit(decoder.hidden, static_argnums=1)(params, config, embedded, mask)
  first, kept = jax.jit(decoder.prefill, static_argnums=(1, 4))(
    params, config, embedded[:, :-ahead], mask[:, :-ahead], ahead
  )
  step = jax.jit(decoder.step, static_argnums=1)
  states = [first]
  for place in range(LENGTH - ahead, LENGTH):
    state, kept = step(params, config, embedded[:, place : place + 1], kept)
    states.append(state)
  real = np.asarray(mask) > 0
  cached = np.asarray(jnp.concatenate(states, axis=1))
  np.testing.assert_allclose(cached[real], np.asarray(full)[real], atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_branches_equal_the_full_pass_of_each(case, models):
  """Three texts that go on from one and the same: read at once behind its cache, and each alone."""
  _, loaded = models(case)
  config, params = loaded.config, loaded.params
  depends = config.rope is not None and config.rope.kind in rope.DEPENDS_ON_LENGTH
  lengths = (4, 4, 4) if depends else (4, 2, 3)
  more = np.random.default_rng(5).integers(3, 99, (3, 3, 4))  # [B, branches, tokens]
  real = np.arange(4) < np.array(lengths)[:, None]
  own = np.repeat(np.arange(3), 4)
  among = (own[:, None] == own) & np.tri(12, dtype=bool) & real.reshape(-1)
  places = np.broadcast_to(np.minimum(np.arange(4), np.array(lengths)[:, None] - 1), (3, 3, 4))
  embed = lambda ids: decoder.embed(params, config, jnp.asarray(ids))

  @jax.jit
  def branches(tokens, mask):
    _, kept = decoder.prefill(params, config, embed(tokens), mask, mask.sum(1) * 0 + 4, room=0)
    assert kept.mask.shape[1] == LENGTH
    seen = jnp.broadcast_to(among, (3, 12, 12))
    return decoder.branch(
      params, config, embed(more.reshape(3, 12)), kept, jnp.asarray(places.reshape(3, 12)), seen
    )

  for padding in ("left", "right"):
    tokens, mask = inputs(padding)
    found = np.asarray(branches(tokens, jnp.asarray(mask))).reshape(3, 3, 4, -1)
    whole = np.concatenate([np.repeat(tokens, 3, axis=0), more.reshape(9, 4)], axis=1)
    whole_mask = np.concatenate([np.repeat(mask, 3, axis=0), np.tile(real, (3, 1))], axis=1)
    full = jax.jit(decoder.hidden, static_argnums=1)(params, config, embed(whole), whole_mask)
    full = np.asarray(full)[:, LENGTH:].reshape(found.shape)
    np.testing.assert_allclose(found[:, real], full[:, real], atol=2e-5, err_msg=padding)


EACH_FAMILY = {kind: case for case, (kind, _) in reversed(CASES.items())}.values()


@pytest.mark.parametrize("case", sorted(EACH_FAMILY))
def test_eight_devices_equal_one(case, tmp_path):
  torch_model(case).save_pretrained(tmp_path)
  alone = load_decoder(str(tmp_path), progress=False)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  spread = load_decoder(str(tmp_path), mesh=mesh, progress=False)
  assert alone.fingerprint == spread.fingerprint
  sharded = [a for a in jax.tree.leaves(spread.params) if not a.sharding.is_fully_replicated]
  assert sharded

  @jax.jit
  def logits(params, tokens, mask):
    states = decoder.hidden(params, alone.config, decoder.embed(params, alone.config, tokens), mask)
    return decoder.logits(params, alone.config, states)

  tokens, mask = inputs("left")
  real = mask > 0
  one, eight = (np.asarray(logits(held.params, tokens, mask))[real] for held in (alone, spread))
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
  whole, bare = (load_decoder(str(tmp_path / n), progress=False) for n in ("whole", "bare"))
  assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, bare.params))


@pytest.mark.parametrize("case", sorted(EACH_FAMILY))
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_compute_what_they_stand_for(kind, case, tmp_path):
  """The logits of the matrices made whole, cached decoding too; int8 is near the original."""
  torch_model(case).save_pretrained(tmp_path)
  plain = load_decoder(str(tmp_path), progress=False)
  held = load_decoder(str(tmp_path), quantize=kind, progress=False).params
  is_held = lambda leaf: isinstance(leaf, Quantized)
  assert sum(map(is_held, jax.tree.leaves(held, is_leaf=is_held))) >= 5
  whole = jax.tree.map(lambda leaf: dense(leaf) if is_held(leaf) else leaf, held, is_leaf=is_held)
  tokens, mask = inputs("left")
  run = jax.jit(logits_and_step, static_argnums=1)
  ours, made_whole, original = (
    run(params, plain.config, tokens, mask) for params in (held, whole, plain.params)
  )
  real = mask > 0
  assert np.isfinite(ours[0]).all()
  np.testing.assert_allclose(np.asarray(ours[0])[real], np.asarray(made_whole[0])[real], atol=2e-5)
  np.testing.assert_allclose(ours[1], made_whole[1], atol=2e-5)
  np.testing.assert_allclose(ours[1], np.asarray(ours[0])[:, -1], atol=2e-5)
  routed = plain.config.experts  # a token on the border may go to another expert
  if kind == "int8" and not routed:
    distance = np.linalg.norm((ours[0] - original[0])[real]) / np.linalg.norm(original[0][real])
    assert distance < 0.1


def logits_and_step(params, config, tokens, mask):
  """Logits of the whole text [B, T, V], and those of its last token by a cached step [B, V]."""
  x = decoder.embed(params, config, tokens)
  whole = decoder.logits(params, config, decoder.hidden(params, config, x, mask))
  _, kept = decoder.prefill(params, config, x[:, :-1], mask[:, :-1], 1)
  state, _ = decoder.step(params, config, x[:, -1:], kept)
  return whole, decoder.logits(params, config, state)[:, 0]
