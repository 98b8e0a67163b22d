"""Loading weights onto devices: several processes, stored dtypes, and the reports of faults.

The loaded values are compared with transformers in test_families and test_load_folder.
"""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers

from frozen_jax.backbones import assemble, families, load
from frozen_jax.backbones.families import FAMILIES
from frozen_jax.backbones.hf_folder import HFFolder
from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from tests.backbones.decoder_cases import CASES, torch_model
from tests.backbones.encoder_cases import KINDS
from tests.processes import HANGS_AFTER, cluster, start

pytestmark = pytest.mark.program


@pytest.fixture
def folder(tmp_path):
  def save(case, **how):
    torch_model(case).save_pretrained(tmp_path / "model", **how)
    return tmp_path / "model"

  return save


def edit(folder, change, file="model.safetensors"):
  tensors = safetensors.numpy.load_file(folder / file)
  change(tensors)
  safetensors.numpy.save_file(
    {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / file
  )


def error_of(path):
  with pytest.raises(UserError) as error:
    load.load_decoder(str(path), progress=False)
  assert "\n" not in str(error.value)
  return str(error.value)


PROGRAM = """
import json, sys
import jax, numpy as np
from frozen_jax.backbones import hf_folder, load
from frozen_jax.sharding import hosts
from frozen_jax.sharding.checksum import checksum
from frozen_jax.sharding.mesh import make_mesh
assert hosts.start(wait=60)
read, hashed = [], []
def count(method, into):
  original = getattr(hf_folder.HFFolder, method)
  def counted(self, name, *index):
    data = original(self, name, *index)
    into.append((name, data.nbytes))
    return data
  setattr(hf_folder.HFFolder, method, counted)
count("read", read), count("raw_bytes", hashed)
loaded = load.load_decoder(sys.argv[1], mesh=make_mesh(fsdp=2), progress=False)
kept = sum(s.data.nbytes for a in jax.tree.leaves(loaded.params) for s in a.addressable_shards)
print(json.dumps({
  "read": sum(size for _, size in read), "hashed": sorted(name for name, _ in hashed),
  "kept": kept, "fingerprint": loaded.fingerprint, "checksum": checksum(loaded.params),
}), flush=True)
hosts.barrier("end", timeout=600)
"""


def in_two_processes(*folders):
  processes = [
    start("-c", PROGRAM, folder, **variables)
    for folder, variables in zip(folders, cluster(len(folders)), strict=True)
  ]
  answers = [process.communicate(timeout=HANGS_AFTER) for process in processes]
  return [process.returncode for process in processes], answers


def test_each_process_reads_its_shards_and_hashes_its_share(folder):
  from frozen_jax.sharding.checksum import checksum

  path = folder("phi3", max_shard_size="20KB")
  codes, answers = in_two_processes(path, path)
  assert codes == [0, 0], answers
  reports = [json.loads(out.splitlines()[-1]) for out, _ in answers]
  alone = load.load_decoder(str(path), progress=False)
  stored = HFFolder(path)
  assert {each["fingerprint"] for each in reports} == {alone.fingerprint}
  assert {each["checksum"] for each in reports} == {checksum(alone.params)}
  assert sorted(reports[0]["hashed"] + reports[1]["hashed"]) == sorted(stored.shapes)
  assert min(len(each["hashed"]) for each in reports) >= len(stored.shapes) // 2
  assert all(each["read"] == each["kept"] for each in reports)  # float32 on disk and in memory
  whole = sum(array.nbytes for array in jax.tree.leaves(alone.params))
  assert all(each["kept"] < 0.6 * whole for each in reports)


def test_processes_with_different_files_are_refused(folder, tmp_path):
  path = folder("llama")
  other = tmp_path / "other"
  torch_model("llama").bfloat16().save_pretrained(other)
  codes, answers = in_two_processes(path, other)
  assert codes == [1, 1]
  assert all("see different tensors in" in err for _, err in answers)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_stored_type_is_cast_on_the_way(folder, kind, sharded):
  path = folder("gpt2")
  stored = np.dtype(getattr(ml_dtypes, kind, kind))
  edit(path, lambda t: t.update({name: value.astype(stored) for name, value in t.items()}))
  tensors = safetensors.numpy.load_file(path / "model.safetensors")
  mesh = make_mesh(data=2, fsdp=2, tensor=2) if sharded else None
  for dtype in ("float32", "bfloat16"):
    params = load.load_decoder(str(path), dtype, mesh, progress=False).params
    kept = params["layers"]["attn"]["k"]["kernel"]  # the middle third of what is stored [in, out]
    width = kept.shape[1]
    for layer, got in enumerate(kept):
      fused = tensors[f"transformer.h.{layer}.attn.c_attn.weight"]
      expected = fused[:, width : 2 * width].astype(np.float32).astype(kept.dtype)
      np.testing.assert_array_equal(got, expected)


def test_a_conversion_may_return_a_tree_whose_arrays_are_stacked(folder):
  """As for quantisation: numbers and their scales, each sharded."""
  path = folder("mixtral")
  stored = load.open_model(path)
  leaves = load.plan_decoder(stored)
  mesh = make_mesh(fsdp=2, tensor=2)
  axes = stored.family.network.PARAM_AXES

  def halves(tensor):
    return (tensor * 2).astype(np.int8), tensor.max(axis=-1, keepdims=True)

  whole = assemble.load_params(
    leaves, stored, load.conversion("float32"), axes, None, progress=False
  )
  split = assemble.load_params(leaves, stored, lambda path: halves, axes, mesh, progress=False)
  up, (numbers, scales) = (tree["layers"]["experts"]["up"]["kernel"] for tree in (whole, split))
  np.testing.assert_array_equal(numbers, (up * 2).astype(np.int8))
  np.testing.assert_array_equal(scales, up.max(axis=-1, keepdims=True))
  assert numbers.dtype == np.int8 and not numbers.sharding.is_fully_replicated
  expected_arrays = assemble.param_shapes(leaves, lambda path: halves)["layers/experts/up/kernel"]
  assert [a.shape for a in expected_arrays] == [numbers.shape, scales.shape]


def test_equal_shapes_are_compiled_once(folder, caplog):
  path = folder("llama")
  leaves = load.plan_decoder(load.open_model(path))
  shapes = {(leaf.stack_shape, leaf.stored_shape, leaf.source.transpose) for leaf in leaves}
  jax.clear_caches()
  for expected in (len(shapes), 0):
    caplog.clear()
    with jax.log_compiles():
      load.load_decoder(str(path), progress=False)
    compiled = [
      line for line in caplog.messages if "Finished XLA compilation of jit(_write)" in line
    ]
    assert len(compiled) == expected


def test_one_error_lists_every_kind_of_fault(folder):
  path = folder("llama")

  def spoil(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    tensors["norm.weight"] = tensors["model.norm.weight"]
    gate = "model.layers.0.mlp.gate_proj.weight"
    tensors[gate] = tensors[gate].astype(np.int8)

  edit(path, spoil)
  again = {"model.embed_tokens.weight": np.zeros((3, 3), np.float32)}
  safetensors.numpy.save_file(again, path / "more.safetensors")
  (path / "model.safetensors").rename(path / "first.safetensors")
  message = error_of(path)
  assert "1 missing: model.layers.1.mlp.up_proj.weight" in message
  assert "1 not known: model.layers.0.self_attn.q_norm.weight" in message
  assert "1 of another shape: lm_head.weight" in message
  assert "2 stored twice: model.embed_tokens.weight (again in more.safetensors), " in message
  assert "norm.weight (also as model.norm.weight)" in message
  assert "model.layers.0.mlp.gate_proj.weight (stored as I8)" in message


def test_masks_of_old_checkpoints_may_have_any_type(folder):
  path = folder("gpt2")
  before = load.load_decoder(str(path), progress=False)
  mask = np.tril(np.ones((1, 1, 8, 8), np.uint8))
  edit(path, lambda t: t.update({"transformer.h.0.attn.bias": mask}))
  edit(path, lambda t: t.update({"transformer.h.1.attn.bias": mask.astype(bool)}))
  after = load.load_decoder(str(path), progress=False)
  jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_an_index_that_lists_absent_files(folder):
  path = folder("llama", max_shard_size="20KB")
  lost = sorted(path.glob("*.safetensors"))[:2]
  for file in lost:
    file.unlink()
  assert f"lacks {lost[0].name}, {lost[1].name}, which its index lists" in error_of(path)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.hf_name)
@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_the_parts_of_a_fused_tensor_cover_it(family, format):
  """No part of a fused tensor is used twice, and none is left out."""
  parts = {}
  for key in family.keys:
    source = getattr(key, format)
    if source is not None:
      part = source.part
      entry = (part and part.layout, part.index if part else 0)
      parts.setdefault(source.name, []).append(entry)
  config = configs()[family.hf_name]
  for name, entries in parts.items():
    layouts = {layout for layout, _ in entries}
    assert len(layouts) == 1, f"{name} is split in two ways"
    (layout,) = layouts
    count = len(layout(config)[1]) if layout else 1
    assert sorted(index for _, index in entries) == list(range(count)), name


@functools.cache
def configs():
  """hf_name -> the network's config of a tiny model of each family."""
  given = [(f"{kind}Config", sizes) for kind, sizes in CASES.values()]
  given += [(kind, sizes) for _, kind, sizes in KINDS.values()]
  settings = [getattr(transformers, kind)(**sizes) for kind, sizes in given]
  stored = {config.model_type: json.loads(config.to_json_string()) for config in settings}
  return {
    family.hf_name: families.read_config(family, "hf", stored[family.hf_name], "here")
    for family in FAMILIES
  }
