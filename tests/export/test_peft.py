"""A prompt written here and loaded by PEFT acts as the same vectors do in front of the text."""

import json

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.export.peft import BaseModel, base_model, check_peft, prompt_adapter, write_peft
from frozen_jax.text.templates import make_template

P, TOLERANCE = 5, 2e-4
BASE, PLAIN = BaseModel("tiny"), make_template("plain")
SIZES = DecoderConfig(
  vocab_size=97, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, context=64
)


def tiny_llama():
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=SIZES.vocab_size,
    hidden_size=SIZES.width,
    num_hidden_layers=SIZES.layers,
    num_attention_heads=SIZES.heads,
    num_key_value_heads=SIZES.kv_heads,
    intermediate_size=SIZES.mlp_width,
    max_position_embeddings=SIZES.context,
    rms_norm_eps=SIZES.norm_eps,
    rope_parameters={"rope_type": "default", "rope_theta": SIZES.rope.theta},
    initializer_range=0.2,
    tie_word_embeddings=False,
  )
  return transformers.LlamaForCausalLM(config).eval()


def to_our_tree(model):
  """transformers keeps kernels [out, in], a module a layer; ours are [L, in, out]."""
  weights = {name: array.numpy() for name, array in model.state_dict().items()}

  def stack(name):
    arrays = [weights[f"model.layers.{layer}.{name}.weight"].T for layer in range(SIZES.layers)]
    return jnp.asarray(np.stack(arrays))

  leaves = {
    "embed/tokens": jnp.asarray(weights["model.embed_tokens.weight"]),
    "final_norm/scale": jnp.asarray(weights["model.norm.weight"]),
    "head/kernel": jnp.asarray(weights["lm_head.weight"].T),
    "layers/attn_norm/scale": stack("input_layernorm"),
    "layers/mlp_norm/scale": stack("post_attention_layernorm"),
  }
  for name in ("q", "k", "v", "o"):
    leaves[f"layers/attn/{name}/kernel"] = stack(f"self_attn.{name}_proj")
  for name in ("gate", "up", "down"):
    leaves[f"layers/mlp/{name}/kernel"] = stack(f"mlp.{name}_proj")
  return paths.unflatten(leaves)


def a_prompt():
  return np.random.default_rng(0).normal(size=(P, SIZES.width)).astype(np.float32)


def written_prompt(folder, base=BASE, template=PLAIN):
  return write_peft(folder, prompt_adapter(jnp.asarray(a_prompt()), SIZES), base, template)


def some_text():
  """Tokens [3, 7] and a mask that pads one row on the right."""
  tokens = np.random.default_rng(1).integers(0, SIZES.vocab_size, size=(3, 7))
  mask = np.ones((3, 7), np.int64)
  mask[1, 4:] = 0
  return tokens, mask


@pytest.fixture(scope="module")
def base():
  return tiny_llama()


@pytest.fixture(scope="module")
def peft_logits(base, tmp_path_factory):
  """Logits [3, P + 7, V] of PEFT with the adapter that it loaded from our folder."""
  folder = written_prompt(tmp_path_factory.mktemp("peft"))
  tokens, mask = map(torch.as_tensor, some_text())
  with torch.no_grad():
    model = peft.PeftModel.from_pretrained(tiny_llama(), folder).eval()
    return model(input_ids=tokens, attention_mask=mask).logits.numpy()


def test_generate_without_its_cache_continues_the_vectors_and_the_text(base, tmp_path):
  """As the note says; with the cache PEFT 0.21 leaves them after the first token."""
  folder = written_prompt(tmp_path)
  ids = torch.tensor([[5, 9, 11, 40, 3]])
  how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
  prompt = torch.as_tensor(a_prompt())[None]
  x = torch.cat([prompt, base.get_input_embeddings()(ids)], dim=1)
  with torch.no_grad():
    model = peft.PeftModel.from_pretrained(tiny_llama(), folder).eval()
    mask = torch.ones_like(ids)
    found = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **how)
    mask = torch.ones(x.shape[:2], dtype=torch.long)
    expected = base.generate(inputs_embeds=x, attention_mask=mask, **how)
  assert found[0, 5:].tolist() == expected[0].tolist()


def real_positions():
  return np.concatenate([np.ones((3, P), bool), some_text()[1].astype(bool)], axis=1)


def test_peft_gives_the_logits_of_the_same_vectors_in_front_of_the_text(base, peft_logits):
  tokens, mask = map(torch.as_tensor, some_text())
  with torch.no_grad():
    prompt = torch.as_tensor(a_prompt()).expand(3, P, SIZES.width)
    x = torch.cat([prompt, base.get_input_embeddings()(tokens)], dim=1)
    mask = torch.cat([torch.ones(3, P, dtype=mask.dtype), mask], dim=1)
    expected = base(inputs_embeds=x, attention_mask=mask).logits.numpy()
    without = base(input_ids=tokens).logits.numpy()
  real = real_positions()
  np.testing.assert_allclose(peft_logits[real], expected[real], atol=TOLERANCE, rtol=0)
  assert np.abs(peft_logits[0, P:] - without[0]).max() > 100 * TOLERANCE, "the prompt does nothing"


def test_peft_gives_the_logits_of_our_decoder(base, peft_logits):
  params = to_our_tree(base)
  tokens, mask = map(jnp.asarray, some_text())
  prompt = jnp.broadcast_to(a_prompt(), (3, P, SIZES.width))
  x = jnp.concatenate([prompt, decoder.embed(params, SIZES, tokens)], axis=1)
  mask = jnp.concatenate([jnp.ones((3, P), mask.dtype), mask], axis=1)
  ours = decoder.logits(params, SIZES, decoder.hidden(params, SIZES, x, mask))
  real = real_positions()
  np.testing.assert_allclose(peft_logits[real], ours[real], atol=TOLERANCE, rtol=0)


def test_the_folder_holds_what_peft_reads(tmp_path):
  written_prompt(tmp_path)
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  assert (config["num_virtual_tokens"], config["peft_type"]) == (P, "PROMPT_TUNING")
  assert set(config) <= set(peft.PromptTuningConfig().to_dict()), "PEFT does not know a field"


def test_a_prompt_of_another_width_is_refused():
  with pytest.raises(ValueError, match="32"):
    prompt_adapter(a_prompt()[:, :-1], SIZES)


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    written_prompt(tmp_path / "file" / "x")


# --- the base model, and the note


@pytest.fixture
def cached(tmp_path, monkeypatch):
  """A model in the hub's cache: (its name, the commit)."""
  commit = "0123456789" * 4
  repository = tmp_path / "hub" / "models--someone--tiny"
  (repository / "snapshots" / commit).mkdir(parents=True)
  (repository / "snapshots" / commit / "config.json").write_text("{}")
  (repository / "refs").mkdir()
  for name in ("main", "v1"):
    (repository / "refs" / name).write_text(commit)
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return "hf:someone/tiny", commit


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_model_of_the_hub_is_named_as_there_with_its_commit(cached, revision):
  name, commit = cached
  base = base_model(name + revision)
  assert (base.name, base.revision, base.of_hub) == ("someone/tiny", commit, True)


def test_a_built_in_model_has_the_name_that_the_hub_knows_it_by():
  base = base_model("smollm2-135m-instruct")
  assert (base.name, base.revision) == ("HuggingFaceTB/SmolLM2-135M-Instruct", None)
  assert "quantised" in base.note


def test_a_local_model_is_named_by_its_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "folder").mkdir()
  (tmp_path / "x.gguf").write_text("")
  assert base_model("folder") == BaseModel(str(tmp_path / "folder"))
  base = base_model("./x.gguf")
  assert base.name == str(tmp_path / "x.gguf") and "gguf_file='x.gguf'" in base.note


def written(folder, base=BASE, template=PLAIN):
  written_prompt(folder, base, template)
  return json.loads((folder / "adapter_config.json").read_text()), (
    folder / "README.md"
  ).read_text()


def test_the_note_says_how_the_text_looks_and_what_to_set(tmp_path):
  config, note = written(tmp_path, BaseModel("someone/tiny", "abc", True))
  assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", "abc")
  assert "base_model: someone/tiny" in note and "revision `abc`" in note
  assert repr("Question: {question}\nAnswer:") in note
  assert "use_cache=False" in note and "peft/issues/2123" in note and "on the right" in note


@pytest.mark.parametrize(
  "template, said", [("chat", "apply_chat_template"), ("Q: {question} A:", "'Q: {question} A:'")]
)
def test_the_note_has_the_template_of_the_adapter(tmp_path, template, said):
  config, note = written(tmp_path, template=make_template(template))
  assert said in note and "Question: {question}" not in note
  assert config["revision"] is None and "base_model:" not in note


VECTORS = np.zeros((P, SIZES.width))
PROMPT = {"prompt": {"vectors": VECTORS}}


def described(method, **prompt):
  return {"method": method, "sections": {"prompt": prompt} if prompt else {}}


@pytest.mark.parametrize(
  "info, parts, message",
  [
    (described("adapters"), {"adapters": {}}, "PEFT has no bottleneck adapters"),
    (described("prompt_tuning", layer="6"), PROMPT, "joins the text at prompt.layer=6"),
    (described("prompt_tuning", layer="0.2"), PROMPT, "joins the text at prompt.layer=0.2"),
    (
      described("prompt_tuning", per_task=True),
      {"prompt": {"vectors": VECTORS[None]}},
      "does not write several prompts",
    ),
    (described("neural_recursion"), {"connector": {}, "prompt": {}}, "PEFT has no form for"),
    (described("fine_tuning"), {"lm": {}}, "PEFT has no form for what fine_tuning trains"),
  ],
)
def test_what_is_not_written_is_refused_with_what_would_do(info, parts, message):
  with pytest.raises(UserError, match=f"{message}.*config.export.format=adapter writes it"):
    check_peft(info, parts)


@pytest.mark.parametrize(
  "info, parts",
  [
    (described("prompt_tuning", layer="embeddings"), PROMPT),
    (described("prompt_tuning", layer="0"), PROMPT),
    (described("p_tuning"), PROMPT | {"prompt_encoder": {}}),
    (described("prefix_tuning", length=4), {"prefix": {}}),
    (described("lora"), {"lora": {}}),
  ],
)
def test_what_peft_has_too_is_written(info, parts):
  check_peft(info, parts)
