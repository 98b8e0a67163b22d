"""Plans: what is read off a compiled program is what it does, and the compiler for TPUs agrees."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.core.errors import UserError
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.tools.pod_plan import __main__ as pod_plan
from frozen_jax.tools.pod_plan import planning, roofline, topology
from frozen_jax.tools.pod_plan.chips import CHIPS, chip_of
from frozen_jax.tools.pod_plan.hlo import read_program
from frozen_jax.tools.pod_plan.plan import NOTHING, ProgramPlan
from frozen_jax.tools.pod_plan.programs import Sizes

pytestmark = pytest.mark.program

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra `plan`)"
)
TINY = {
  "vocab_size": 512,
  "width": 256,
  "layers": 3,
  "heads": 4,
  "kv_heads": 2,
  "head_dim": 128,
  "mlp_width": 512,
}


def compiled(function, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return read_program(jax.jit(function).lower(*arrays).compile().as_text())


def test_products_count_as_often_as_their_loop_runs():
  def powers(x, y):
    return jax.lax.scan(lambda x, _: (x @ y, None), x, None, length=7)[0]

  found = roofline.costs(compiled(powers, (64, 32), (32, 32)))
  assert found.flops == 7 * 2 * 64 * 32 * 32


def test_loops_within_loops():
  def inner(x, y):
    return jax.lax.fori_loop(0, 5, lambda _, x: x @ y, x)

  def outer(x, y):
    return jax.lax.scan(lambda x, _: (inner(x, y), None), x, None, length=3)[0]

  assert roofline.costs(compiled(outer, (16, 8), (8, 8))).flops == 15 * 2 * 16 * 8 * 8


@pytest.mark.parametrize("branches", [2, 3])
def test_the_branches_of_a_conditional_run_equally_often(branches):
  def chosen(x, y, index):
    products = [lambda x, y, n=n: jnp.tanh(x + n) @ y for n in range(branches)]
    step = lambda x, index: (jax.lax.switch(index, products, x, y), None)
    return jax.lax.scan(step, x, index.astype(jnp.int32))[0]

  found = roofline.costs(compiled(chosen, (64, 32), (32, 32), (6,)))
  assert found.flops == pytest.approx(6 * 2 * 64 * 32 * 32)


@pytest.mark.parametrize(
  "scope, keys", [("", 64), ("causal_all/", 64), ("causal_5/", 5), ("both_ways_all/", 128)]
)
def test_a_kernel_of_attention_counts_the_keys_that_a_query_meets(scope, keys):
  array = "bf16[2,4,128,32]{3,2,1,0}"
  name = f'backend={{\n"a":1\n}}, metadata={{op_name="jit(f)/{scope}splash_mha_fwd"}}'
  text = f"""ENTRY %main (q: {array}) -> {array} {{
  %q = {array} parameter(0)
  ROOT %splash_mha_fwd_residuals.1 = {array} custom-call(%q, %q, %q), {name}
}}"""
  assert roofline.costs(read_program(text)).flops == 2 * 2 * (2 * 4 * 128 * 32) * keys


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight simulated devices")
@pytest.mark.parametrize("kind, axes", [("all-gather", P()), ("all-to-all", P(None, "data"))])
def test_collectives_by_kind(kind, axes):
  mesh = make_mesh(data=8)
  rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))
  run = jax.jit(lambda a: a * 2, out_shardings=NamedSharding(mesh, axes))
  found = roofline.costs(read_program(run.lower(rows).compile().as_text()))
  assert set(found.collective_bytes) == {kind}
  whole = 64 * 16 * 4
  moved = whole if kind == "all-gather" else whole / 8
  assert found.collective_bytes[kind] == moved
  assert found.link_bytes == moved * 7 / 8


def test_memory_counts_slices_and_not_the_whole():
  def rows(table, index):
    return jax.lax.dynamic_slice_in_dim(table, index, 4)

  shapes = [jax.ShapeDtypeStruct((4096, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)]
  text = jax.jit(rows).lower(*shapes).compile().as_text()
  assert roofline.costs(read_program(text)).memory_bytes < 8 * 4 * 64 * 4


# How the compiler for TPUs slices a layer out of a stack: after a copy within the fusion, which is
# in another layout only, and before or after it is converted.
SLICED = """
ENTRY %main (stack: u4[4,256,512], at: s32[]) -> f32[1,256,512] {
  %stack = u4[4,256,512]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %slice = (u4[4,256,512]{2,1,0}, u4[1,256,512]{2,1,0:S(1)}, s32[]) slice-start(%stack)
  ROOT %layer = f32[1,256,512]{2,1,0:S(1)} fusion(%stack, %at), kind=kLoop, calls=%fused
}

%fused (a: u4[4,256,512], b: s32[]) -> f32[1,256,512] {
  %a = u4[4,256,512]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %copied = u4[4,256,512]{2,1,0} fusion(%a), kind=kLoop, calls=%same
  %wide = f32[4,256,512]{2,1,0} convert(%copied)
  ROOT %part = f32[1,256,512]{2,1,0} dynamic-slice(%wide, %b, %b, %b)
}

%same (c: u4[4,256,512]) -> u4[4,256,512] {
  %c = u4[4,256,512]{2,1,0} parameter(0)
  ROOT %copy = u4[4,256,512]{2,1,0} copy(%c)
}
"""


def test_of_a_stack_the_bytes_of_a_layer_are_read():
  layer = 256 * 512 / 2  # by the fusion, and by the slice
  index = 4
  assert roofline.costs(read_program(SLICED)).memory_bytes == 2 * layer + index


# A product with a matrix that is in another shape within the fusion.
RESHAPED = """
ENTRY %main (x: f32[8,64], y: f32[1,64,32]) -> f32[8,32] {
  %x = f32[8,64]{1,0:S(1)} parameter(0)
  %y = f32[1,64,32]{2,1,0} parameter(1)
  ROOT %product = f32[8,32]{1,0:S(1)} fusion(%x, %y), kind=kOutput, calls=%fused
}

%fused (a: f32[8,64], b: f32[1,64,32]) -> f32[8,32] {
  %a = f32[8,64]{1,0} parameter(0)
  %b = f32[1,64,32]{2,1,0} parameter(1)
  %matrix = f32[64,32]{1,0} fusion(%b), kind=kLoop, calls=%same
  ROOT %out = f32[8,32]{1,0} dot(%a, %matrix), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%same (c: f32[1,64,32]) -> f32[64,32] {
  %c = f32[1,64,32]{2,1,0} parameter(0)
  ROOT %flat = f32[64,32]{1,0} bitcast(%c)
}
"""


def test_a_matrix_of_a_product_is_read_as_a_whole():
  assert roofline.costs(read_program(RESHAPED)).memory_bytes == 64 * 32 * 4


@pytest.mark.parametrize("wrong", ["v5p", "v9:2x2", "v5e:4by4", "v5e:0x4", "v5e:"])
def test_an_unknown_topology_is_named(wrong):
  with pytest.raises(UserError, match="no topology; give a kind of chip"):
    chip_of(wrong)


def test_what_takes_longest_binds():
  costs = roofline.Costs(flops=459e12, memory_bytes=2 * 2765e9, collective_bytes={}, link_bytes=0.0)
  plan = ProgramPlan("train_step", CHIPS["v5p"], {"arguments": 96e9}, costs, 300e12)
  assert plan.seconds == {"compute": 1.0, "hbm": 2.0, "ici": 0.0}
  assert plan.binds == "hbm" and not plan.fits
  assert plan.mfu == pytest.approx(300 / 459 / 2)
  assert ProgramPlan("train_step", CHIPS["v5p"], {}, NOTHING, 1.0).mfu == 0


def made_plan(rows, flops=1e12, moved=1e9, training_bytes=0.0, decoding_bytes=0.0):
  """A plan of these rows, with programs of these costs."""
  made = lambda name, size, costs: ProgramPlan(name, CHIPS["v5e"], {"arguments": size}, costs, 1e12)
  programs = (
    made("train_step", training_bytes, roofline.Costs(flops, 0.0, {}, 0.0)),
    made("prefill", 0.0, NOTHING),
    made("decode_step", decoding_bytes, roofline.Costs(0.0, moved, {}, 0.0)),
  )
  return planning.Plan(None, {}, Sizes(rows, 8, 8, 8), programs)


def test_plans_are_ranked_by_training_or_by_decoding():
  quick_step, quick_token = made_plan(8), made_plan(8, flops=2e12, moved=5e8)
  more_rows = made_plan(64, flops=3e12, moved=2e9)
  large = made_plan(99, flops=1e11, moved=1e7, training_bytes=17e9)
  larger = made_plan(98, flops=1e11, moved=1e7, decoding_bytes=17e9)
  plans = [more_rows, large, larger, quick_token, quick_step]
  order = [larger, quick_step, quick_token, more_rows, large]
  assert planning.ranked(plans, "training") == order
  order = [large, more_rows, quick_token, quick_step, larger]
  assert planning.ranked(plans, "decoding") == order
  assert quick_token.tokens_per_second == pytest.approx(8 / (5e8 / 819e9))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--topology=v5e:4x4"], "arguments are required: --config"),
    (["--config=configs/lora.py", "--topology=v5e:4x4", "--mesh=rows=2"], "is no mesh"),
    (["--config=configs/lora.py", "--topology=x"], "is no topology"),
    (["--config=configs/lora.py", "--topology=v5e:4x4", "--stage=a"], "is no stage of the config"),
    (["--config=configs/lora.py", "--topology=v5e:4x4", "--rows=0"], "no such number"),
    (["--config=configs/lora.py", "--topologie=v5e:4x4"], "did you mean --topology?"),
    (["--config=configs/lora.py", "--topology=v5e:4x4", "--sweep=rows"], "invalid choice: 'rows'"),
  ],
)
def test_an_error_is_one_line_and_status_2(arguments, message, capsys):
  assert pod_plan.main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_without_the_compiler_the_way_to_get_it_is_named(monkeypatch):
  def missing(**_):
    raise RuntimeError("no libtpu")

  monkeypatch.setattr(topology.topologies, "get_topology_desc", missing)
  monkeypatch.setattr(topology, "_has_libtpu", lambda: False)
  with pytest.raises(UserError, match=r"pip install 'frozen_jax\[plan\]'"):
    topology.topology_devices("v5e:4x4")


@pytest.fixture
def config(tmp_path):
  """A config of a tiny model; `sizes` may be replaced."""

  def write(method="prompt_tuning", quantize="", **sizes):
    text = (
      "from ml_collections import ConfigDict\n"
      "from frozen_jax.run.defaults import defaults\n\n"
      "def get_config(variant=''):\n"
      "  config = defaults()\n"
      "  config.stage_order = ('tune',)\n"
      f"  config.stages.tune = ConfigDict({{'method': '{method}'}})\n"
      f"  config.model.sizes = ConfigDict({TINY | sizes})\n"
      "  config.model.update({'dtype': 'bfloat16', 'remat': 'full'})\n"
      f"  config.model.quantize = '{quantize}'\n"
      "  config.data.lengths = (256,)\n"
      "  config.mesh.update({'data': 1, 'fsdp': 0})\n"
      "  return config\n"
    )
    path = tmp_path / f"{method}.py"
    path.write_text(text)
    return path

  return write


@needs_compiler
def test_a_small_topology_is_planned(config, tmp_path, capsys):
  out = tmp_path / "plan.json"
  arguments = [f"--config={config()}", "--topology=v5e:2x2", "--rows=6", f"--json={out}"]
  assert pod_plan.main(arguments) == 0
  plan = json.loads(out.read_text())
  assert plan["topology"] == "v5e:2x2" and plan["chips"] == 4
  assert plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1} and plan["rows"] == 8
  assert [one["name"] for one in plan["programs"]] == ["train_step", "prefill", "decode_step"]
  for program in plan["programs"]:
    assert program["fits"] and set(program["bytes_per_chip"]) >= {"arguments", "temporaries"}
    assert program["binds"] in program["seconds"] and 0 < program["mfu"] < 1
    assert program["flops_per_chip"] > 0.9 * program["model_flops_per_chip"] > 0
    assert program["largest_buffers"][0]["nbytes"] > 0
  # Rows of 288 slots; layers, keys and values, heads, numbers of 2 bytes; on one of four chips.
  cache = 8 * 288 * 3 * 2 * 2 * 128 * 2 / 4
  assert plan["cache_bytes_per_chip"] == pytest.approx(cache, rel=0.15)
  text = capsys.readouterr().out
  assert "4 x TPU v5e (v5e:2x2): data=1, fsdp=4, tensor=1" in text
  assert "(6 do not split over the mesh)" in text and "frozen_jax/" in text
  assert max(map(len, text.splitlines())) <= 120


@needs_compiler
def test_quantised_weights_are_planned(config, tmp_path):
  out = tmp_path / "plan.json"
  path = config(quantize="int4")
  arguments = [f"--config={path}", "--topology=v5e:2x2", "--rows=4", f"--json={out}"]
  assert pod_plan.main(arguments) == 0
  programs = {one["name"]: one for one in json.loads(out.read_text())["programs"]}
  # Two codes a byte; a scale and an offset of 2 bytes for 32 of them; on one of four chips.
  layer = 256 * (4 + 2 * 2 + 4) * 128 + 3 * 256 * 512
  weights = (3 * layer + 2 * 512 * 256) * (1 / 2 + 4 / 32) / 4
  assert programs["prefill"]["bytes_per_chip"]["arguments"] == pytest.approx(weights, rel=0.15)
  # They are gathered as codes.
  assert programs["prefill"]["collective_bytes_per_chip"]["all-gather"] < 4 * 1.3 * weights


@needs_compiler
def test_a_sweep_of_what_trains_nothing_is_one_of_decoding(config, capsys):
  assert pod_plan.main([f"--config={config('zero_shot')}", "--topology=v5e:2x2", "--sweep"]) == 2
  assert "stage tune trains nothing; give --sweep=decoding" in capsys.readouterr().err


@needs_compiler
def test_what_does_not_fit_ends_with_1(config, capsys):
  large = {"layers": 80, "width": 8192, "heads": 64, "mlp_width": 28672}
  arguments = [f"--config={config(**large)}", "--topology=v5e:2x2"]
  assert pod_plan.main(arguments) == 1
  assert "DOES NOT FIT" in capsys.readouterr().out


@needs_compiler
def test_a_sweep_ranks_meshes(config, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(planning, "ROWS_PER_GROUP", (1,))
  monkeypatch.setattr(planning, "MAX_TENSOR", 1)
  out = tmp_path / "sweep.json"
  path = config(layers=1)
  arguments = [f"--config={path}", "--topology=v5e:2x2", "--sweep=decoding", f"--json={out}"]
  assert pod_plan.main(arguments) == 0
  plans = json.loads(out.read_text())
  found = [max(plan["programs"][2]["seconds"].values()) for plan in plans]
  assert [plan["rows"] for plan in plans] == [4] * 3 and found == sorted(found)
  title, header, *lines = capsys.readouterr().out.splitlines()
  assert "training step" in title and "a token" in header and len(lines) == 3
  assert all("ms" in line and max(map(len, lines)) <= 120 for line in lines)


@needs_compiler
@pytest.mark.parametrize(
  "name, sizes",
  [("v6e:16x16", {"data": 2, "fsdp": 32, "tensor": 4}), ("v6e:16x16", {"fsdp": 8, "tensor": 32})]
  + [("v5p:4x4x8", {"data": 2, "fsdp": 16, "tensor": 4})],
)
def test_axes_may_be_parts_of_the_machines(name, sizes):
  sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
  assert dict(topology.topology_mesh(name, sizes).shape) == sizes


@needs_compiler
def test_a_mesh_of_other_size_is_refused():
  with pytest.raises(UserError, match="has 8 devices and v5e:2x2 has 4"):
    topology.topology_mesh("v5e:2x2", {"data": 2, "fsdp": 4, "tensor": 1})
