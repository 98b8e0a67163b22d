"""Every architecture of GGUF files against transformers: tiny models, as the converter writes them.

Some settings have no key in GGUF files, since llama.cpp knows them by the name of the architecture;
there the tiny model has what the real ones have.
"""

import gguf
import numpy as np
import pytest

from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones import gguf_writing
from tests.backbones.decoder_cases import torch_model

pytestmark = pytest.mark.program

SIGMOID = gguf.ExpertGatingFuncType.SIGMOID
NO_WINDOW = {"sliding_window": None}
SCALED_BY_HEAD = {"query_pre_attn_scalar": 16}
SEVEN = {"num_hidden_layers": 7, "layer_types": None}  # so that the sixth sees the whole text
CASES = {
  "llama": {},
  "llama-biases-tied": {},
  "llama-linear": {},
  "llama-llama3": {},
  "llama-yarn": {},
  "mistral": NO_WINDOW,
  "mistral-full": {},
  "mixtral": {},
  "qwen2": {},
  "qwen3": {},
  "qwen3-biases": {},
  "qwen3_moe-renormalised": {},
  "smollm3": {},
  "phi3": {},
  "phi3-partial-sliding": {},
  "phi3-longrope": {},
  "gemma": {},
  "gemma2": SCALED_BY_HEAD,
  "gemma3": SCALED_BY_HEAD | SEVEN,
  "gemma3-linear": SCALED_BY_HEAD | {"final_logit_softcapping": 3.0},
  "gpt2": {},
  "gpt_neox": {},
  "gpt_neox-in-line": {},
  "bloom": {},
  "bloom-eight-heads": {},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """`files(case)` -> the torch model and its GGUF file."""

  def get(case, change=lambda writer: None):
    folder = tmp_path_factory.mktemp("model")
    model = torch_model(case, **CASES[case])
    return model, gguf_writing.write(folder / "model.gguf", model, folder / "hf", change)

  return get


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case, files, torch_logits, our_logits):
  model, path = files(case)
  loaded = load_decoder(str(path), progress=False)
  tokens = np.random.default_rng(3).integers(3, 99, (3, 13))
  mask = np.ones_like(tokens)
  for row, missing in enumerate((0, 3, 6)):
    mask[row, :missing] = 0
  ours = our_logits(loaded, tokens, mask)
  for row, missing in enumerate((0, 3, 6)):  # alone: some scalings of transformers see the batch
    wanted = torch_logits(model, tokens[row : row + 1, missing:])[0]
    assert np.abs(wanted).max() > 0.05, "the model does nothing that could be compared"
    np.testing.assert_allclose(ours[row, missing:], wanted, atol=1e-4)


@pytest.mark.parametrize("case", ["mixtral", "phi3", "gemma3", "bloom"])
def test_a_mesh_gives_the_same_weights(case, files):
  import jax

  _, path = files(case)
  whole = load_decoder(str(path), progress=False)
  spread = load_decoder(str(path), mesh=make_mesh(fsdp=2, tensor=4), progress=False)
  jax.tree.map(np.testing.assert_array_equal, spread.params, whole.params)
  assert spread.fingerprint == whole.fingerprint


def in_blocks(apart):
  """Changes a writer so that experts are stored in eight bits, stacked or each by itself."""

  def change(writer):
    add, kind = writer.add_tensor, gguf.GGMLQuantizationType.Q8_0

    def add_tensor(name, tensor):
      if "_exps" not in name:
        add(name, tensor)
      elif apart:
        for expert, part in enumerate(gguf.quants.quantize(tensor, kind)):
          own = name.replace("_exps.weight", f".{expert}.weight")
          add(own, np.ascontiguousarray(part), raw_dtype=kind)
      else:
        add(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)

    writer.add_tensor = add_tensor

  return change


def test_experts_in_one_tensor_or_each_by_itself(tmp_path):
  """llama.cpp stacked the experts of a layer in spring 2024; older files have them apart."""
  import jax

  model = torch_model("mixtral", hidden_size=64, intermediate_size=96, num_attention_heads=4)
  loaded = []
  for name, change in (
    ("plain", lambda w: None),
    ("one", in_blocks(False)),
    ("apart", in_blocks(True)),
  ):
    path = gguf_writing.write(tmp_path / f"{name}.gguf", model, tmp_path / name, change)
    loaded.append(load_decoder(str(path), progress=False))
  plain, one, apart = (decoder.params for decoder in loaded)
  jax.tree.map(np.testing.assert_array_equal, one, apart)
  assert loaded[1].fingerprint == loaded[2].fingerprint
  for kernel in ("gate", "up", "down"):
    off = np.abs(
      one["layers"]["experts"][kernel]["kernel"] - plain["layers"]["experts"][kernel]["kernel"]
    )
    assert 0 < off.max() < 0.01


@pytest.mark.parametrize(
  "case, change, named",
  [
    ("mixtral", lambda w: w.add_expert_weights_norm(False), "expert_weights_norm = False"),
    ("mixtral", lambda w: w.add_expert_gating_func(SIGMOID), "expert_gating_func = 2"),
    ("qwen3_moe-renormalised", lambda w: w.add_expert_shared_count(1), "expert_shared_count = 1"),
    ("qwen2", lambda w: w.add_sliding_window(9), "attention.sliding_window = 9"),
    ("phi3", lambda w: w.add_rope_dimension_count(7), "7 of 8 numbers"),
    ("gemma2", lambda w: w.add_attention_scale(0.5), "attention.scale = 0.5"),
    ("gpt_neox", lambda w: w.add_clamp_kqv(3.0), "attention.clamp_kqv = 3.0"),
    ("bloom", lambda w: w.add_max_alibi_bias(16.0), "attention.max_alibi_bias = 16.0"),
    ("llama-yarn", lambda w: w.add_rope_scaling_yarn_ext_factor(0.5), "yarn_ext_factor = 0.5"),
    ("llama-yarn", lambda w: w.add_rope_scaling_yarn_attn_factor(1.0), "yarn_attn_factor = 1.0"),
    ("gpt2", lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, "f4")), "rope_freqs = "),
    (
      "llama",
      lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, "f4")),
      "rope_freqs has 4 divisors for the 8 pairs",
    ),
  ],
)
def test_metadata_that_is_not_understood_is_named(case, change, named, files):
  _, path = files(case, change)
  with pytest.raises(UserError) as error:
    load_decoder(str(path), progress=False)
  assert named in str(error.value)
