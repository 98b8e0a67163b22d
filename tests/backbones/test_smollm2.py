"""The real model: SmolLM2-135M-Instruct by name, against transformers in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from frozen_jax.backbones import decoder, stack

PROMPTS = [
  "Hi",
  "The capital of France is",
  "Q: In which part of the world is the country whose capital is Lima?\nA:",
  "Once upon a time, in a village at the foot of the mountains, there lived an old clockmaker who "
  "had never once been late. One morning in 1912 every clock in his shop stopped at 7:43, and he "
  "could not find out why, though he took them apart one after the other and oiled each wheel.",
]


@pytest.fixture(scope="module")
def reference(smollm2_file):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
  )
  return model.eval()


@pytest.mark.parametrize("prompt", PROMPTS, ids=["word", "sentence", "question", "story"])
def test_logits(smollm2, reference, torch_logits, our_logits, prompt):
  tokens = [smollm2.tokenizer.encode(prompt)]
  expected = torch_logits(reference, tokens)
  np.testing.assert_allclose(our_logits(smollm2, tokens), expected, atol=2e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch(smollm2, reference, torch_logits, our_logits, side):
  batch = smollm2.tokenizer(PROMPTS, padding=True, padding_side=side, return_tensors="np")
  tokens, mask = batch["input_ids"], batch["attention_mask"]
  assert not mask.all()
  ours = our_logits(smollm2, tokens, mask)
  theirs = torch_logits(reference, tokens, mask)
  real = mask.astype(bool)
  np.testing.assert_allclose(ours[real], theirs[real], atol=2e-4)
  for row, prompt in enumerate(PROMPTS):  # and padding changes nothing
    alone = our_logits(smollm2, [smollm2.tokenizer.encode(prompt)])[0]
    np.testing.assert_allclose(ours[row][real[row]], alone, atol=2e-4)


def test_greedy_generation_of_40_tokens_takes_the_likeliest_of_transformers(smollm2, reference):
  chat = [{"role": "user", "content": "Tell me three facts about the Moon."}]
  prompt = smollm2.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
  tokens = smollm2.tokenizer.encode(prompt)
  apart = smollm2.params | {"layers": stack.unstack(smollm2.params["layers"])}

  @jax.jit
  def prefill(params, tokens):
    x = decoder.embed(params, smollm2.config, tokens)
    states, cache = decoder.prefill(params, smollm2.config, x, jnp.ones_like(tokens), 40)
    return decoder.logits(params, smollm2.config, states[:, -1]).argmax(-1), cache

  @jax.jit
  def step(params, token, cache):
    x = decoder.embed(params, smollm2.config, token[:, None])
    states, cache = decoder.step(params, smollm2.config, x, cache)
    return decoder.logits(params, smollm2.config, states[:, -1]).argmax(-1), cache

  token, cache = prefill(smollm2.params, jnp.asarray([tokens]))
  ours = [int(token[0])]
  while len(ours) < 40 and ours[-1] != smollm2.tokenizer.eos_token_id:
    token, cache = step(apart, token, cache)
    ours.append(int(token[0]))
  assert len(ours) == 40
  with torch.no_grad():
    theirs = reference(torch.tensor([tokens + ours[:-1]])).logits[0, len(tokens) - 1 :]
  assert theirs.argmax(-1).tolist() == ours


def test_the_config_is_the_published_one(smollm2):
  config = smollm2.config
  assert (config.layers, config.width, config.heads, config.kv_heads) == (30, 576, 9, 3)
  assert (config.head_dim, config.mlp_width, config.vocab_size) == (64, 1536, 49152)
  assert (config.tied, config.rope.theta, config.context) == (True, 1e5, 8192)
  assert sum(leaf.size for leaf in jax.tree.leaves(smollm2.params)) == 134_515_008
