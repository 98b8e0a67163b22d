"""Folders of PEFT and .npy prompts: what is read comes back, and the rest is refused in a line."""

import dataclasses
import io
import json
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.export import peft
from frozen_jax.export.peft_reading import CONFIG, PICKLE, TENSORS, read_foreign
from frozen_jax.pipelines.load_adapter import load_adapter, stored_arrays
from frozen_jax.text.templates import make_template
from tests.export.peft_cases import (
  GPT,
  KINDS,
  LORA,
  ROWS,
  SIZES,
  P,
  an_adapter,
  draw,
  lm,
  prefix,
  updates,
)

lm_of_all = lm()


@pytest.fixture
def folder(tmp_path):
  """`folder(kind, tensors={}, **settings)`: an adapter of PEFT with other settings or tensors."""

  def write(kind, tensors=types.MappingProxyType({}), **settings):
    adapter = an_adapter(kind)
    peft.write_peft(tmp_path, adapter, peft.BaseModel("tiny"), make_template("plain"))
    config = json.loads((tmp_path / CONFIG).read_text()) | settings
    (tmp_path / CONFIG).write_text(json.dumps(config))
    kept = {**adapter.tensors, **tensors}
    kept = {name: array for name, array in kept.items() if array is not None}
    safetensors.numpy.save_file(kept, tmp_path / TENSORS)
    return tmp_path

  return write


def same(found, expected):
  found, expected = paths.flatten(found), paths.flatten(expected)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)


def test_what_was_written_comes_back(folder):
  model = load_adapter(folder("LORA"), lm())
  same(model.trained, {"lora": updates()})
  assert model.method.name == "lora"
  read = model.sections["lora"]
  assert (read.rank, read.alpha, set(read.targets)) == (3, 6.0, set(LORA.targets))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
def test_a_prompt_comes_back(folder, kind):
  model = load_adapter(folder(kind), lm())
  same(model.trained, {"prompt": {"vectors": draw(P, SIZES.width)}})
  assert model.method.name == "prompt_tuning" and model.num_virtual_tokens == P


def test_a_prefix_comes_back(folder):
  model = load_adapter(folder("PREFIX_TUNING"), lm())
  same(model.trained, {"prefix": prefix()})
  assert model.method.name == "prefix_tuning" and model.num_virtual_tokens == P


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_starts_from_is_read_without_a_model(folder, kind):
  arrays = stored_arrays(folder(kind))
  assert arrays.keys() == an_adapter(kind).tensors.keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(folder, dtype):
  rows = draw(P, SIZES.width).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  model = load_adapter(folder("PROMPT_TUNING", {"prompt_embeddings": rows}), lm())
  vectors = model.trained["prompt"]["vectors"]
  assert vectors.dtype == np.float32
  np.testing.assert_array_equal(vectors, rows.astype(np.float32))


# --- refused by name


@pytest.mark.parametrize(
  "settings, said",
  [
    ({"use_rslora": True}, "use_rslora=True"),
    ({"use_dora": True}, "use_dora=True"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern={'q_proj': 4}"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern={'q_proj': 4}"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
    ({"bias": "all"}, "bias='all'"),
    ({"bias": "lora_only"}, "bias='lora_only'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ({"layers_to_transform": [0]}, "layers_to_transform=[0]"),
    ({"layer_replication": [[0, 2]]}, "layer_replication="),
    ({"trainable_token_indices": [1]}, "trainable_token_indices=[1]"),
    ({"target_parameters": ["experts.w"]}, "target_parameters="),
    ({"use_what_comes_next": 1}, "use_what_comes_next=1"),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
    ({"use_rslora": True, "use_dora": True}, "use_rslora=True, use_dora=True"),
  ],
)
def test_what_lora_here_does_not_compute_is_refused_by_name(folder, settings, said):
  with pytest.raises(UserError) as error:
    load_adapter(folder("LORA", **settings), lm())
  assert said in str(error.value) and "merge_and_unload" in str(error.value)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ROWS)
def test_what_a_prompt_here_does_not_have_is_refused_by_name(folder, kind):
  with pytest.raises(UserError, match="modules_to_save"):
    load_adapter(folder(kind, modules_to_save=["lm_head"]), lm())
  with pytest.raises(UserError, match="num_transformer_submodules=2"):
    load_adapter(folder(kind, num_transformer_submodules=2), lm())


@pytest.mark.parametrize("kind", ["IA3", "ADALORA", "VERA", None, 3, ["LORA"]])
def test_other_types_are_refused_with_those_that_there_are(folder, kind):
  with pytest.raises(UserError, match=r"type .* can be read: PROMPT_TUNING, P_TUNING"):
    load_adapter(folder("LORA", peft_type=kind), lm())


@pytest.mark.parametrize("settings", [{"r": 0}, {"r": "3"}, {"r": True}, {"lora_alpha": 0}])
@pytest.mark.parametrize("more", [{}, {"lora_alpha": float("inf")}, {"lora_alpha": None}])
def test_sizes_that_are_none(folder, settings, more):
  with pytest.raises(UserError, match="which is no size"):
    load_adapter(folder("LORA", **(settings | more)), lm())


def test_an_alpha_that_no_float_holds(folder):
  with pytest.raises(UserError, match="which is no size"):
    load_adapter(folder("LORA", lora_alpha=10**400), lm())


def test_a_file_of_a_folder_is_none(folder):
  with pytest.raises(UserError, match="adapter_model.safetensors is a file; give the folder"):
    load_adapter(folder("LORA") / "adapter_model.safetensors", lm())


# --- the wrong base


@pytest.mark.parametrize(
  "kind, changes, said",
  [
    ("PROMPT_TUNING", {"width": 18}, "16 numbers, and embeddings of tiny have 18"),
    ("P_TUNING", {"width": 18}, "16 numbers, and embeddings of tiny have 18"),
    ("PREFIX_TUNING", {"layers": 3}, "48 numbers .* of tiny are 72"),
    ("PREFIX_TUNING", {"kv_heads": 4}, "48 numbers .* of tiny are 96"),
    ("LORA", {"mlp_width": 20}, "down_proj by arrays .* this model takes .*3, 20"),
    ("LORA", {"heads": 2}, r"arrays .* load the model it was trained on"),
    ("LORA", {"layers": 3}, "in some of the 3 layers only"),
    ("LORA", {"layers": 1}, "layers.1.* which this reader cannot update in this model; it can"),
  ],
)
def test_a_model_of_other_sizes_is_refused(folder, kind, changes, said):
  with pytest.raises(UserError, match=said):
    load_adapter(folder(kind), lm(**changes))


def test_a_model_of_another_family_is_refused(folder):
  with pytest.raises(UserError, match=r"updates model.layers.0.* in this model; it can .*c_attn"):
    load_adapter(folder("LORA"), lm("gpt2", **GPT, kv_heads=4))


# --- tensors that are not of the adapter

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHER = draw(3, SIZES.width)


@pytest.mark.parametrize(
  "tensors, said",
  [
    ({A: None}, "but one of lora_A and lora_B"),
    ({"base_model.model.lm_head.weight": OTHER}, "is no low-rank update of a linear layer"),
    ({A.replace("lora_A.weight", "lora_magnitude_vector"): OTHER}, "lora_magnitude_vector"),
    ({A.replace("self_attn.q_proj", "mlp.router"): OTHER}, "updates model.layers.0.mlp.router"),
    ({A: np.full((3, SIZES.width), np.nan, np.float32)}, "NaN or infinite numbers"),
    ({A: np.zeros((3, SIZES.width), np.int32)}, "numbers of type I32; save the adapter in float32"),
  ],
)
def test_tensors_that_are_not_lora_are_named(folder, tensors, said):
  with pytest.raises(UserError, match=said):
    load_adapter(folder("LORA", tensors), lm())


@pytest.mark.parametrize("kind", ROWS)
def test_tensors_that_are_not_a_prompt_are_named(folder, kind):
  with pytest.raises(UserError, match="holds lm_head.weight, prompt_embeddings, and an adapter"):
    load_adapter(folder(kind, {"lm_head.weight": OTHER}), lm())
  with pytest.raises(UserError, match=rf"\[3, 16\] and is said to have {P} positions"):
    load_adapter(folder(kind, {"prompt_embeddings": OTHER}), lm())
  with pytest.raises(UserError, match="said to have"):
    load_adapter(folder(kind, num_virtual_tokens=P + 1), lm())


# --- files


def test_a_pickle_is_refused_unread(folder):
  where = folder("LORA")
  (where / TENSORS).rename(where / PICKLE)
  with pytest.raises(UserError, match="a pickle, which may run any code"):
    load_adapter(where, lm())


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(folder, name):
  where = folder("LORA")
  (where / name).unlink()
  with pytest.raises(UserError, match=rf"cannot read .*{name} .*holds {CONFIG} and {TENSORS}"):
    load_adapter(where, lm())


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(folder, kind, name):
  where = folder(kind)
  whole = (where / name).read_bytes()
  for length in np.linspace(0, len(whole) - 1, 12).astype(int):
    (where / name).write_bytes(whole[:length])
    with pytest.raises(UserError):
      load_adapter(where, lm_of_all)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_file_is_refused_or_read(folder, kind, name):
  """No other error than the user's; altered numbers show nowhere in such a file."""
  where = folder(kind)
  whole = (where / name).read_bytes()
  header = 8 + int.from_bytes(whole[:8], "little") if name == TENSORS else len(whole)
  random, refused = np.random.default_rng(0), 0
  for _ in range(40):
    data = bytearray(whole)
    for place in random.integers(0, header, 2):
      data[place] = random.integers(0, 256)
    (where / name).write_bytes(data)
    try:
      load_adapter(where, lm_of_all)
    except UserError:
      refused += 1
  assert refused > 20


@pytest.mark.parametrize("text", ["[]", "null", "{", '"x"', "[" * 100_000])
def test_a_config_that_is_none(folder, text):
  where = folder("LORA")
  (where / CONFIG).write_text(text)
  with pytest.raises(UserError, match=CONFIG):
    load_adapter(where, lm_of_all)


# --- prompts of the original prompt tuning


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_npy_prompt_is_read(tmp_path, dtype):
  vectors = draw(P, SIZES.width).astype(dtype)
  np.save(tmp_path / "prompt.npy", vectors)
  model = load_adapter(tmp_path / "prompt.npy", lm_of_all)
  assert model.method.name == "prompt_tuning"
  same(model.trained, {"prompt": {"vectors": vectors.astype(np.float32)}})
  same(stored_arrays(tmp_path / "prompt.npy"), {"prompt_embeddings": vectors.astype(np.float32)})


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def npz(array):
  file = io.BytesIO()
  np.savez(file, array)
  return file.getvalue()


GOOD = npy(draw(P, SIZES.width))


@pytest.mark.parametrize(
  "data, said",
  [
    (npy(np.array([[{"a": 1}]], object)), "no whole .npy file of numbers"),
    (GOOD[:-1], "no whole .npy file"),
    (GOOD[:20], "no whole .npy file"),
    (b"", "no whole .npy file"),
    (GOOD.replace(b"(5, 16)", b"(10**9, 16)"), "no whole .npy file"),
    (npy(np.ones((P, SIZES.width), int)), "holds int64"),
    (npy(draw(SIZES.width)), r"holds float32 \[16\]; a prompt is one array \[P, D\]"),
    (npz(draw(P, SIZES.width)), "holds several arrays"),
    (npy(np.full((P, SIZES.width), np.inf)), "NaN or infinite"),
    (npy(draw(P, 9)), "vectors of 9 numbers, and embeddings of tiny have 16"),
    (npy(draw(0, SIZES.width)), "said to have 0 positions"),
  ],
)
def test_a_npy_file_that_is_no_prompt(tmp_path, data, said):
  (tmp_path / "prompt.npy").write_bytes(data)
  with pytest.raises(UserError, match=said):
    load_adapter(tmp_path / "prompt.npy", lm_of_all)


def test_a_npy_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match="cannot read .*none.npy"):
    load_adapter(tmp_path / "none.npy", lm_of_all)


def test_what_is_neither_is_left_to_others(tmp_path):
  assert read_foreign(tmp_path) is None


def test_an_adapter_of_here_comes_before_one_of_peft_in_the_same_folder(folder):
  where = folder("LORA")
  model = load_adapter(where, lm_of_all)
  altered = jax.tree.map(lambda leaf: leaf + 1, model.trained)
  dataclasses.replace(model, trained=altered).save(where)
  same(load_adapter(where, lm_of_all).trained, altered)
  assert "lora" in stored_arrays(where)["trained"]
