"""Adapters of many families in PEFT and here: equal logits, and the same bytes there and back."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import pytest
import safetensors.numpy
import torch

from frozen_jax import load_adapter, load_frozen
from frozen_jax.backbones import decoder
from frozen_jax.core import paths
from frozen_jax.export import peft
from frozen_jax.export.peft_reading import TENSORS
from frozen_jax.methods import METHODS
from frozen_jax.methods.lora import LoraSettings, product_names
from frozen_jax.methods.p_tuning import PTuningSettings
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.modules.settings import PromptSettings
from frozen_jax.text.templates import make_template
from tests.backbones.decoder_cases import torch_model
from tests.evaluation.tiny import words
from tests.export.conftest import lines_of_the_page

pytestmark = pytest.mark.program

P, RANK, TOLERANCE = 4, 3, 2e-4
TOKENS = np.random.default_rng(3).integers(3, 99, (2, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """`base(case)`: a tiny model of a family in torch, and as it is loaded here from its folder."""

  @functools.cache
  def load(case):
    model, folder = torch_model(case), tmp_path_factory.mktemp(case)
    model.save_pretrained(folder)
    return model, load_frozen(str(folder))

  return load


def tuned(lm, name):
  """A tuned model whose trained numbers are random: all products of the LM for LoRA."""
  prompt = PromptSettings(length=P, text="")
  targets = tuple(product_names(paths.flatten(lm.params)))
  given = [prompt, PTuningSettings(width=24), LoraSettings(rank=RANK, alpha=6.0, targets=targets)]
  kinds = METHODS[name].sections
  sections = {one.section: one for one in given if one.section in kinds}
  method = METHODS[name].build(lm, sections)
  shapes = jax.eval_shape(lambda: method.init(lm, jax.random.key(0)))
  random = np.random.default_rng(1)
  draw = lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
  return TunedModel(lm, method, jax.tree.map(draw, shapes), sections=sections)


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, x, prompt, peft_params):
  states = decoder.hidden(params, config, x, prompt=prompt, peft=peft_params)
  return decoder.logits(params, config, states)


def our_logits(model):
  """Logits [B, T, V] of the texts, after what the method puts before them."""
  method, lm = model.method, model.lm
  params, peft_params, _ = method.pass_params(model.trained, model.frozen)
  x = lm.embed(TOKENS)
  prompt = method.prompt(model.trained, model.frozen, {})
  return np.asarray(_logits(params, lm.config, x, prompt, peft_params))


def their_logits(model):
  with torch.no_grad():
    ids = torch.from_numpy(TOKENS)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
  return logits.numpy()[:, -TOKENS.shape[1] :]


def write(folder, model):
  base = peft.BaseModel(model.lm.name)
  return peft.write_peft(folder, peft.peft_adapter(model), base, make_template("plain"))


LORA = ("llama", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral", "opt", "gptj", "bloom", "qwen3")
PREFIX = ("llama", "gemma2", "gpt2", "gpt_neox", "mistral", "bloom")
PROMPT = ("llama", "gemma", "gpt2", "bloom")


@pytest.mark.parametrize(
  "name, case",
  [
    *(("lora", case) for case in LORA),
    *(("prefix_tuning", case) for case in PREFIX),
    *(("prompt_tuning", case) for case in PROMPT),
    ("p_tuning", "llama"),
  ],
)
def test_peft_computes_what_was_exported(base, tmp_path, name, case):
  model, lm = base(case)
  ours = tuned(lm, name)
  write(tmp_path, ours)
  theirs = hf_peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
  logits = our_logits(ours)
  np.testing.assert_allclose(logits, their_logits(theirs), atol=TOLERANCE, rtol=0)
  plain = their_logits(model)
  assert np.abs(logits - plain).max() > 0.05, "the adapter does nothing"


def lora(*targets, **more):
  return hf_peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=list(targets), **more)


@pytest.mark.parametrize(
  "case, options",
  [
    ("llama", lora("q_proj", "v_proj", "down_proj", task_type="CAUSAL_LM")),
    ("gpt2", lora("c_attn", "attn.c_proj", fan_in_fan_out=True)),
    ("gpt_neox", lora("query_key_value", "dense_h_to_4h")),
    ("llama", hf_peft.PromptTuningConfig(num_virtual_tokens=P, task_type="CAUSAL_LM")),
    (
      "llama",
      hf_peft.PromptEncoderConfig(
        num_virtual_tokens=P, encoder_hidden_size=24, task_type="CAUSAL_LM"
      ),
    ),
    ("llama", hf_peft.PrefixTuningConfig(num_virtual_tokens=P, task_type="CAUSAL_LM")),
  ],
  ids=lambda one: getattr(getattr(one, "peft_type", None), "value", one),
)
def test_what_peft_saved_is_computed_here_and_written_with_the_same_bytes(
  base, tmp_path, case, options
):
  model, lm = base(case)
  theirs = hf_peft.get_peft_model(copy.deepcopy(model), copy.deepcopy(options)).eval()
  with torch.no_grad():
    for weight in theirs.parameters():
      if weight.requires_grad:
        weight.normal_(0, 0.3)
  theirs.save_pretrained(tmp_path / "theirs")
  ours = load_adapter(tmp_path / "theirs", lm)
  np.testing.assert_allclose(our_logits(ours), their_logits(theirs), atol=TOLERANCE, rtol=0)
  write(tmp_path / "ours", ours)
  first, second = (
    safetensors.numpy.load_file(tmp_path / folder / TENSORS) for folder in ("theirs", "ours")
  )
  assert first.keys() == second.keys()
  for name, tensor in first.items():
    np.testing.assert_array_equal(second[name], tensor, strict=True)


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "prefix_tuning", "lora"])
def test_the_lines_of_the_page_give_the_same_text_here_and_there(name, tmp_path, monkeypatch):
  model = torch_model("llama", vocab_size=40)
  with torch.no_grad():
    model.lm_head.weight[[0, 2]] = 0  # the tokens that would end an answer
  model.save_pretrained(tmp_path / "my_model")
  words().save_pretrained(tmp_path / "my_model")
  lm = load_frozen(str(tmp_path / "my_model"))
  write(tmp_path / "my_adapter", tuned(lm, name))
  monkeypatch.chdir(tmp_path)
  there, here = {}, {}
  how = "torch.cat" if name == "prefix_tuning" else "generate(**ids"
  exec(lines_of_the_page("import peft", how), there)
  exec(lines_of_the_page("load_frozen"), here)
  assert there["answer"].strip() == here["answer"]
  assert len(here["answer"].split()) > 2
