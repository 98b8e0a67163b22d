"""What the tools say of quantised models without reading them is what is loaded."""

import gguf
import jax
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from frozen_jax.backbones import load
from frozen_jax.core import paths
from frozen_jax.core.dtypes import QUANTIZATION_KINDS
from frozen_jax.models.frozen_lm import load_model
from frozen_jax.run.settings import resolve_run
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.tools import inspect
from frozen_jax.tools.abstract_stage import AbstractStage
from frozen_jax.tools.model_sizes import find_models
from frozen_jax.tools.pod_plan.programs import Programs, Sizes
from tests.backbones.conftest import random_llama, write_gguf
from tests.backbones.decoder_cases import torch_model

pytestmark = [
  pytest.mark.program,
  pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices"),
]


def settings(path, kind, **model):
  """The settings of a run of prompt tuning with this model, quantised."""
  model = {"name": str(path), "quantize": kind, "dtype": "bfloat16", **model}
  return resolve_run(
    {
      "stage_order": ("tune",),
      "stages": {"tune": {"method": "prompt_tuning"}},
      "model": model,
      "prompt": {"text": "", "length": 4},
    }
  )


def assert_as_loaded(run, mesh):
  """The plan's weights and the rows of `inspect` are those of the loaded model."""
  loaded = load_model(run.model, mesh)
  models = find_models(run.model)
  assert models.lm == loaded.config
  sizes = Sizes(rows=8, length=16, targets=4, max_new_tokens=4)
  planned = Programs(AbstractStage.of(run, "tune"), models, mesh, sizes).frozen["lm"]
  assert jax.tree.structure(planned) == jax.tree.structure(loaded.params)

  held = []
  for path, tree in paths.flatten(loaded.params).items():
    held += [(path + keystr(keys[-1:]), array) for keys, array in tree_leaves_with_path(tree)]
  for (path, array), plan in zip(held, jax.tree.leaves(planned), strict=True):
    assert (plan.shape, plan.dtype) == (array.shape, array.dtype), path
    assert plan.sharding.is_equivalent_to(array.sharding, array.ndim), path
  if run.model.num_layers:
    return
  stored = load.open_model(load.resolve_model_path(run.model.name, progress=False))
  rows = inspect.parameter_rows(
    load.plan_decoder(stored),
    stored,
    load.weight_dtype(run.model.dtype),
    run.model.quantize or None,
    mesh.abstract_mesh,
  )
  for row, (path, array) in zip(rows, held, strict=True):
    assert (row.path, row.shape, row.dtype) == (path, array.shape, array.dtype.name)
    assert row.spec == tuple(array.sharding.spec), path
    half = row.dtype in ("int4", "uint4")  # of a byte, also where `nbytes` does not say so
    assert row.shard_bytes == -(-array.addressable_shards[0].data.nbytes // (1 + half)), path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """`folder(case)`: a tiny model of `decoder_cases`, in the folder of its own."""
  saved = {}

  def save(case):
    if case not in saved:
      saved[case] = tmp_path_factory.mktemp(case)
      torch_model(case).save_pretrained(saved[case])
    return saved[case]

  return save


FAMILIES = ("llama-biases-tied", "gpt2", "phi3", "qwen3_moe", "gemma3")
CASES = {
  "int4": FAMILIES,
  "int8": ("gpt2", "qwen3_moe"),
  "nf4": ("phi3", "gemma3"),
}
assert set(CASES) == set(QUANTIZATION_KINDS)


@pytest.mark.parametrize(
  "kind, case", [(kind, case) for kind, cases in CASES.items() for case in cases]
)
def test_a_folder(folder, case, kind):
  assert_as_loaded(settings(folder(case), kind), make_mesh(data=2, fsdp=2, tensor=2))


@pytest.mark.parametrize("kind, mesh", [("int4", "fsdp"), ("int4", "tensor"), ("", "fsdp")])
def test_other_meshes(folder, kind, mesh):
  """Where the mesh divides the numbers of a matrix, and its groups or pairs of codes not."""
  assert_as_loaded(settings(folder("gemma3"), kind), make_mesh(**{mesh: 8}))


@pytest.mark.parametrize(
  "kind, stored",
  [("int8", "Q8_0"), ("int4", "Q4_0"), ("int4", "Q4_1"), ("nf4", "Q4_0"), ("int8", "F16")],
)
def test_a_gguf_file(tmp_path, kind, stored):
  """Blocks that are used unchanged, and those that are quantised anew."""
  path = write_gguf(tmp_path / "model.gguf", random_llama(), kind=gguf.GGMLQuantizationType[stored])
  assert_as_loaded(settings(path, kind), make_mesh(data=2, fsdp=2, tensor=2))


def test_some_layers_with_a_cache_of_integers(folder):
  run = settings(folder("llama-biases-tied"), "int4", num_layers=2, cache="int8")
  assert find_models(run.model).lm.cache == "int8" and find_models(run.model).lm.layers == 2
  assert_as_loaded(run, make_mesh(fsdp=4, tensor=2))
