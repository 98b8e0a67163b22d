"""P-tuning against PEFT's P_TUNING, and where it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from frozen_jax.core.errors import UserError
from frozen_jax.methods.p_tuning import PTuning, PTuningSettings
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.modules.settings import PromptSettings
from tests.export.test_peft import SIZES, some_text, tiny_llama, to_our_tree
from tests.methods.tiny import RANDOM_START, base

WIDTH, TOLERANCE = 24, 1e-4


def peft_model(tree):
  """PEFT's P-tuning of the tiny LM with these trained numbers."""
  vectors = np.asarray(tree["prompt"]["vectors"])
  config = peft.PromptEncoderConfig(
    task_type="CAUSAL_LM",
    num_virtual_tokens=len(vectors),
    encoder_reparameterization_type="MLP",
    encoder_hidden_size=WIDTH,
  )
  model = peft.get_peft_model(tiny_llama(), config).eval()
  encoder = model.prompt_encoder["default"]
  tensors = {"embedding.weight": vectors}
  for index in range(3):
    layer = jax.tree.map(np.asarray, tree["prompt_encoder"][f"layer_{index}"])
    tensors[f"mlp_head.{2 * index}.weight"] = layer["kernel"].T
    tensors[f"mlp_head.{2 * index}.bias"] = layer["bias"]
  encoder.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
  return model


def test_it_computes_what_peft_computes():
  params = to_our_tree(tiny_llama())
  method = PTuning(SIZES, RANDOM_START, WIDTH)
  tree = method.init(base(SIZES, params), jax.random.key(0))
  noise = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
  tree = jax.tree.map(noise, tree)  # biases, too
  tokens, mask = some_text()
  prompts = {"tokens": tokens.astype(np.int32), "mask": mask.astype(np.int32)}
  frozen = {"lm": params, "frozen_inputs": {}}
  logits, _ = jax.jit(method.prefill, static_argnums=(3, 4))(tree, frozen, prompts, 0, 0)
  model = peft_model(tree)
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits.numpy()
    vectors = model.get_prompt(batch_size=1)[0].numpy()
  np.testing.assert_allclose(method.prompt(tree, frozen, prompts), vectors, atol=TOLERANCE)
  last = vectors.shape[0] + mask.sum(axis=1) - 1
  np.testing.assert_allclose(logits, theirs[np.arange(3), last], atol=TOLERANCE)


@pytest.mark.parametrize("settings", [RANDOM_START, PromptSettings(length=9, text="a text")])
def test_it_starts_as_prompt_tuning(settings):
  """Also where the text is repeated, so that some embeddings are the same."""
  method, plain = PTuning(SIZES, settings, WIDTH), PromptTuning(SIZES, settings)
  lm, key = base(SIZES, to_our_tree(tiny_llama())), jax.random.key(3)
  start = method.prompt(method.init(lm, key), {}, {})
  vectors = plain.init(lm, key)["prompt"]["vectors"]
  np.testing.assert_allclose(start, vectors, atol=1e-4)


def test_a_narrow_mlp_starts_as_close_as_it_can():
  lm, key = base(SIZES, to_our_tree(tiny_llama())), jax.random.key(3)
  apart = []
  for width in (2, 4, 24):
    tree = PTuning(SIZES, RANDOM_START, width).init(lm, key)
    start = PTuning(SIZES, RANDOM_START, width).prompt(tree, {}, {})
    apart.append(float(jnp.abs(start - tree["prompt"]["vectors"]).mean()))
  assert apart == sorted(apart, reverse=True) and apart[-1] < 1e-4


def test_settings_that_make_no_sense():
  with pytest.raises(UserError, match="p_tuning.width is 0"):
    PTuning.build(base(), {"prompt": PromptSettings(), "p_tuning": PTuningSettings(width=0)})
  with pytest.raises(UserError, match="per_task"):
    sections = {"prompt": PromptSettings(per_task=True), "p_tuning": PTuningSettings()}
    PTuning.build(base(), sections)
