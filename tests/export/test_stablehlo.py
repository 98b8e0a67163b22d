"""Exported programs compute what the methods do, in a process that has no frozen_jax too."""

import dataclasses
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from frozen_jax.backbones import decoder, kernels
from frozen_jax.backbones.config import DecoderConfig, Rope
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import filled_folder
from frozen_jax.decoding.prompts import left_padded_arrays
from frozen_jax.export import stablehlo
from frozen_jax.export.about import adapter_tree
from frozen_jax.export.manifest import read_manifest
from frozen_jax.methods import METHODS
from tests.export.conftest import QUESTIONS, on_the_page, tuned
from tests.processes import HANGS_AFTER, start

LOADER = on_the_page("export.deserialize")
NEW, TOLERANCE = 3, 1e-5
ALL = [(name, {}) for name in METHODS]
ALL += [("prompt_tuning", {"prompt": {"layer": "1"}}), ("id_pt", {"prompt": {"layer": "1"}})]
ALL += [("neural_recursion", {"recursion": {"connector": {"kind": "tokens"}}})]


def weights_of(model):
  frozen = {"lm": model.lm.params}
  if model.method.encoder_input:
    frozen["encoder"] = model.lm.encoder.params
  return paths.flatten(adapter_tree(model)), paths.flatten(frozen)


def exported(model):
  """Prefill and step, serialised and read again."""
  inputs, _ = stablehlo._inputs(model)
  programs = stablehlo.export_programs(model.method, *weights_of(model), inputs, NEW)
  return [export.deserialize(one.serialize()) for one in programs]


def arrays(model, width=30):
  """The inputs of three questions, padded on the left."""
  task = model.question_task
  prompts = [task.prompt({"id": "", "question": question}) for question in QUESTIONS]
  given = left_padded_arrays(prompts, max(width, *(len(one.tokens) for one in prompts)), 3)
  if "encoder_tokens" in given:
    for name in ("encoder_tokens", "encoder_mask"):
      padded = np.zeros((3, stablehlo._inputs(model)[0][name].shape[1]), np.int32)
      padded[:, : given[name].shape[1]] = given[name][:, : padded.shape[1]]
      given[name] = padded
  return given


def of_the_method(model, inputs):
  """Logits [B, V] of NEW greedy steps, by the method."""
  frozen = model.frozen
  prefill = jax.jit(model.method.prefill, static_argnums=(3, 4))
  decode = jax.jit(model.method.decode)
  logits, state = prefill(model.trained, frozen, inputs, NEW, NEW)
  found = [logits]
  for _ in range(NEW):
    tokens = jnp.argmax(found[-1], -1).astype(jnp.int32)
    logits, state = decode(model.trained, frozen, tokens, state)
    found.append(logits)
  return np.stack(found)


def of_the_programs(programs, weights, inputs):
  prefill, step = (jax.jit(one.call) for one in programs)
  logits, state = prefill(*weights, inputs, np.int32(NEW))
  found = [logits]
  for _ in range(NEW):
    tokens = np.argmax(found[-1], -1).astype(np.int32)
    logits, state = step(*weights, tokens, state)
    found.append(logits)
  return np.stack(found)


@pytest.mark.parametrize("name, settings", ALL)
def test_the_programs_compute_what_the_method_does(lm_with_encoder, name, settings):
  inputs = {"encoder_length": 20}
  model = tuned(lm_with_encoder, name, inputs, **settings)
  programs, given = exported(model), arrays(model)
  for one in programs:
    assert one.platforms == ("cpu", "cuda", "tpu")
    assert len(one.serialize()) < 200_000
  found = of_the_programs(programs, weights_of(model), given)
  np.testing.assert_allclose(found, of_the_method(model, given), atol=TOLERANCE, rtol=0)


SMALL = {"vocab_size": 97, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8}
SLIDING = {"kinds": ("sliding", "full", "sliding"), "window": 4}


@pytest.mark.parametrize(
  "fields",
  [
    SLIDING | {"score_cap": 3.0, "logit_cap": 5.0, "embed_scale": 2.0, "norm_after": True},
    {"positions": "learned", "norm": "layer", "gated": False, "qkv_bias": True, "kv_heads": 4},
    {"positions": "alibi", "parallel": True, "embed_norm": True},
    {"experts": 4, "experts_per_token": 2, "qk_norm": True},
    {"rope": Rope(kind="dynamic", factor=2.0, original_context=8), "cache": "int8"},
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_every_kind_of_decoder_is_a_program(fields):
  config = DecoderConfig(**SMALL | {"mlp_width": 48, "tied": True} | fields)
  params = decoder.random_params(config, jax.random.key(0))
  method = METHODS["zero_shot"](config)
  rows, length = export.symbolic_shape("b, t", constraints=["t >= 2"])
  texts = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  weights = {}, paths.flatten({"lm": params})
  inputs = {"tokens": texts, "mask": texts}
  programs = stablehlo.export_programs(method, *weights, inputs, NEW)
  tokens = np.random.default_rng(0).integers(0, 97, (3, 11)).astype(np.int32)
  given = {"tokens": tokens, "mask": np.ones_like(tokens)}
  given["mask"][1, :4] = 0
  found = of_the_programs([export.deserialize(one.serialize()) for one in programs], weights, given)
  lm = types.SimpleNamespace(trained={}, frozen={"lm": params, "frozen_inputs": {}}, method=method)
  np.testing.assert_allclose(found, of_the_method(lm, given), atol=TOLERANCE, rtol=0)


def test_rows_may_be_split_over_eight_devices(lm):
  model = tuned(lm, "neural_recursion")
  programs, given = exported(model), arrays(model)
  given = {name: np.repeat(array, 8, axis=0)[:8] for name, array in given.items()}
  mesh = jax.make_mesh((8,), ("data",))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  split = jax.device_put(given, rows)
  weights = jax.device_put(weights_of(model), whole)
  found = of_the_programs(programs, weights, split)
  np.testing.assert_allclose(found, of_the_method(model, given), atol=TOLERANCE, rtol=0)


def test_weights_may_be_split_over_eight_devices(lm):
  """Each matrix along an axis that eight divides; no device has all of any."""
  model = tuned(lm, "neural_recursion")
  programs, given, weights = exported(model), arrays(model), weights_of(model)
  mesh = jax.make_mesh((8,), ("model",))

  def split(array):
    axis = next((axis for axis, size in enumerate(array.shape) if size % 8 == 0), None)
    axes = () if axis is None else (*[None] * axis, "model")
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

  parts = jax.tree.map(split, weights)
  assert not any(leaf.is_fully_replicated for leaf in jax.tree.leaves(parts[1]))
  found = of_the_programs(programs, parts, given)
  np.testing.assert_allclose(found, of_the_method(model, given), atol=TOLERANCE, rtol=0)


def test_prompts_per_task_take_the_number_of_the_task(lm):
  model = tuned(lm, "prompt_tuning", {"datasets": ("one", "two")}, prompt={"per_task": True})
  given = arrays(model) | {"task": np.array([0, 1, 2], np.int32)}
  found = of_the_programs(exported(model), weights_of(model), given)
  np.testing.assert_allclose(found, of_the_method(model, given), atol=TOLERANCE, rtol=0)


@pytest.mark.program
@pytest.mark.parametrize("name", ["neural_recursion", "id_pt"])
def test_the_loader_of_the_page_gives_the_same_answers(lm, lm_with_encoder, tmp_path, name):
  model = tuned(lm_with_encoder if name == "id_pt" else lm, name)
  folder = tmp_path / "my_program"
  with filled_folder(folder) as new:
    stablehlo.write_stablehlo(new, model)
  (tmp_path / "loader.py").write_text(LOADER)
  (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
  run = (
    "import runpy, sys; sys.modules['frozen_jax'] = None; sys.argv = sys.argv[1:];"
    " runpy.run_path('loader.py')"
  )

  def go(anew=False):
    """(status, standard output, standard error) of the loader."""
    command = ("-c", run, "loader.py", folder, "questions.txt")
    process = start(*command, cwd=tmp_path, anew=anew)
    out, err = process.communicate(timeout=HANGS_AFTER)
    return process.returncode, out, err

  status, out, err = go(anew=name == "id_pt")  # one that has imported nothing
  assert status == 0, err
  said = [json.loads(line) for line in out.splitlines()]
  assert said == model.generate(QUESTIONS, max_new_tokens=6)
  about = read_manifest(folder, "stablehlo")
  assert about["inputs"]["tokens"]["shape"] == ["b", "t"] and about["method"] == name
  assert sum(about["files"][f"{one}.bin"]["bytes"] for one in ("prefill", "step")) < 300_000
  if name == "id_pt":
    return
  path = folder / "step.bin"
  path.write_bytes(path.read_bytes()[:-1])
  assert go() == (1, "", "error: step.bin was truncated or altered\n")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_nothing_of_a_platform_is_in_a_program(lm, monkeypatch, platform):
  """Wherever it is written it is the same, without a kernel, and not longer for more layers."""
  model = tuned(lm, "prompt_tuning")
  inputs, _ = stablehlo._inputs(model)
  write = lambda: stablehlo.export_programs(model.method, *weights_of(model), inputs, NEW)
  here = [str(one.mlir_module()) for one in write()]
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  monkeypatch.setattr(kernels, "has_cudnn_attention", lambda: True)
  there = [str(one.mlir_module()) for one in write()]
  calls = [set(re.findall(r"custom_call @?(\w+)", text)) for text in (*here, *there)]
  assert not any(re.search("cudnn|tpu_custom|pallas", one) for found in calls for one in found)
  assert [len(text.splitlines()) for text in here] == [len(text.splitlines()) for text in there]


# --- What cannot be written


def test_several_completions_are_no_program(lm, tmp_path):
  model = dataclasses.replace(tuned(lm, "textual_recursion"), inference=object())
  with pytest.raises(UserError, match="more than one completion.*format=adapter"):
    stablehlo.write_stablehlo(tmp_path, model)


def test_a_model_without_a_tokenizer_is_refused(lm, tmp_path):
  model = dataclasses.replace(
    tuned(lm, "prompt_tuning"), lm=dataclasses.replace(lm, tokenizer=None)
  )
  with pytest.raises(UserError, match="no tokenizer"):
    stablehlo.write_stablehlo(tmp_path, model)


def test_quantised_weights_are_refused(folder, tmp_path):
  import frozen_jax

  model = tuned(frozen_jax.load_frozen(str(folder), quantize="int8"), "prompt_tuning")
  with pytest.raises(UserError, match="these are quantised; leave out --config.model.quantize"):
    stablehlo.write_stablehlo(tmp_path, model)
  assert list(tmp_path.iterdir()) == []
