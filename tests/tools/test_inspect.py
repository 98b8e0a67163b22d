"""The output of `inspect` agrees with loading, and it reads no weights."""

import os
import subprocess
import sys

import jax
import pytest

from frozen_jax.backbones import encoder, load, load_encoder
from frozen_jax.core import paths
from frozen_jax.sharding.mesh import make_mesh
from frozen_jax.tools import inspect
from tests.backbones.decoder_cases import torch_model


@pytest.fixture
def folder(tmp_path):
  def save(case):
    torch_model(case).save_pretrained(tmp_path)
    return tmp_path

  return save


def test_a_model_of_experts(folder, capsys):
  path = folder("mixtral")
  capsys.readouterr()
  assert inspect.main([str(path), "--mesh=fsdp=2, tensor=16", "--dtype=bfloat16"]) == 0
  out, err = capsys.readouterr()
  assert err == ""
  lines = out.splitlines()
  config = load.open_model(path).config
  assert lines[0] == "family      mixtral, decoder, read from safetensors"
  assert f"layers {config.layers}, width {config.width}, heads {config.heads}" in lines[1]
  assert f"experts {config.experts}, experts_per_token {config.experts_per_token}" in lines[2]
  (gate,) = (line for line in lines if line.startswith("layers/experts/gate/kernel"))
  sizes = (config.layers, config.experts, config.width, config.mlp_width)
  assert " x ".join(map(str, sizes)) in gate and "bfloat16" in gate
  assert (
    "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight" in gate and "F32" in gate
  )
  assert config.mlp_width % 16 and "-, -, fsdp, - !" in gate  # whole, where tensor cannot split it
  assert "data=1, fsdp=2, tensor=16: 32 devices" in out


@pytest.mark.parametrize("case", ["gpt2", "phi3", "qwen3_moe", "gemma3"])
def test_its_shapes_and_shardings_are_those_of_loading(folder, case):
  path = folder(case)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  stored = load.open_model(path)
  leaves = load.plan_decoder(stored)
  rows = inspect.parameter_rows(
    leaves, stored, load.weight_dtype("bfloat16"), None, mesh.abstract_mesh
  )
  params = load.load_decoder(str(path), "bfloat16", mesh, progress=False).params
  held = paths.flatten(params)
  assert [row.path for row in rows] == list(held)
  for row in rows:
    array = held[row.path]
    assert (row.shape, row.dtype, row.bytes) == (array.shape, array.dtype.name, array.nbytes)
    assert row.shard_bytes == array.addressable_shards[0].data.nbytes
    assert row.spec == tuple(array.sharding.spec)
  used = {name for leaf in leaves for name in leaf.names}
  assert used <= set(stored.shapes)


def test_an_encoder(tmp_path, capsys):
  from tests.backbones.encoder_cases import make

  make("bert").save_pretrained(tmp_path)
  capsys.readouterr()
  assert inspect.main([str(tmp_path)]) == 0
  output = capsys.readouterr().out
  count = sum(a.size for a in jax.tree.leaves(load_encoder.load_encoder(str(tmp_path)).params))
  assert "bert, encoder, read from safetensors" in output and f"parameters  {count:,} in" in output
  assert load.open_model(tmp_path).family.network is encoder
  assert inspect.main([str(tmp_path), "--quantize=int8"]) == 2
  assert "not quantised" in capsys.readouterr().err
  assert "pooling mean" in output and "pooler" not in output


def test_a_gguf_file_in_a_process_of_its_own(smollm2_file):
  """No tensor is read and no device is touched."""
  program = (
    "import sys\n"
    "from frozen_jax.backbones import gguf_file\n"
    "from frozen_jax.tools import inspect\n"
    "def never(*given): raise AssertionError('a weight was read')\n"
    "gguf_file.GGUFFile.read = gguf_file.GGUFFile.raw_bytes = never\n"
    "sys.exit(inspect.main(sys.argv[1:]))\n"
  )
  command = [sys.executable, "-c", program, str(smollm2_file), "--mesh=data=64,fsdp=8,tensor=3"]
  environment = os.environ | {"JAX_PLATFORMS": "none"}  # whoever asks for a device fails
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "parameters  134,515,008 in 11 arrays" in done.stdout
  assert "in memory   538,060,032 bytes" in done.stdout  # float32
  assert "1536 devices" in done.stdout and "tied True" in done.stdout
  assert "Q8_0   token_embd.weight" in done.stdout


@pytest.mark.parametrize(
  "arguments, output",
  [
    (["nowhere"], "there is no model 'nowhere'"),
    ([], "arguments are required: NAME"),
    (["x", "--mesh=rows=2"], "--mesh=rows=2 is no mesh"),
    (["x", "--mesh=fsdp=0"], "--mesh=fsdp=0 is no mesh of known size"),
    (["x", "--mesh=fsdp=2,fsdp=2"], "gives the size of an axis twice"),
    (["x", "--dtype=int8"], "choose float32 or bfloat16"),
    (["x", "--quantize=int1"], "quantize 'int1'"),
    (["x", "--colour"], "unknown flag --colour; --help"),
  ],
)
def test_an_error_is_one_line_and_status_2(arguments, output, capsys):
  assert inspect.main(arguments) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("error: ") and err.count("\n") == 1
  assert output in err


def test_files_that_are_no_model(folder, capsys):
  path = folder("llama")
  (path / "config.json").write_text((path / "config.json").read_text().replace("silu", "mish"))
  capsys.readouterr()
  assert inspect.main([str(path)]) == 2
  assert "hidden_act = 'mish'" in capsys.readouterr().err


def test_help(capsys):
  with pytest.raises(SystemExit) as stop:
    inspect.main(["--help"])
  output = capsys.readouterr().out
  assert stop.value.code == 0 and "--mesh" in output and "examples:" in output
