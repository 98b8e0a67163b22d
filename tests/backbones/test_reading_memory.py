"""What loading costs in host memory: random checkpoints of 0.5 GB, in a process of its own.

Sampled from outside is RssAnon, the memory that is the process's own. VmHWM would count the pages
of the mapped files as well, which the kernel drops as soon as anybody wants them.
"""

import json
import pathlib
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from frozen_jax.backbones import assemble, families
from tests.processes import environment

pytestmark = pytest.mark.stress

SETTINGS = {
  "model_type": "llama",
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_attention_heads": 16,
}
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from frozen_jax.backbones.load import load_decoder
from frozen_jax.sharding.mesh import make_mesh
folder, devices, dtype = sys.argv[1:]
mesh = make_mesh(fsdp=2, tensor=4) if devices == "8" else None
jax.block_until_ready(jnp.ones(()) + 1)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
loaded = load_decoder(folder, dtype=dtype, mesh=mesh, progress=False)
arrays = jax.tree.leaves(loaded.params)
kept = sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)
print(int(status["RssAnon"].split()[0]) * 1024, kept)
"""


# A quarter of a billion numbers: 0.5 GB in bfloat16; and half as many, most of them in one table.
DEEP = {"vocab_size": 16_000, "num_hidden_layers": 13}
WIDE = {"vocab_size": 64_000, "num_hidden_layers": 4, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """`checkpoint(sizes, dtype)`: a random Llama of 0.5 GB in five files, written one by one."""
  made = {}

  def get(sizes, dtype):
    name = f"{sizes['vocab_size']}-{dtype.__name__}"
    if name not in made:
      made[name] = tmp_path_factory.mktemp(name)
      write(made[name], SETTINGS | sizes, dtype)
    return made[name]

  return get


def write(folder, settings, dtype):
  (folder / "config.json").write_text(json.dumps(settings))
  family = families.family_of("llama", "hf", "here")
  config = families.read_config(family, "hf", settings, "here")
  leaves = assemble.plan_leaves(config, family, "hf")
  shapes = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
  rng = np.random.default_rng(0)
  bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
  finite = np.array(~(1 << (8 * bits.itemsize - 2)), np.int64).astype(bits)  # numbers below 2
  for part in range(5):
    held = {}
    for name in sorted(shapes)[part::5]:
      noise = rng.integers(0, np.iinfo(bits).max, shapes[name], bits)
      held[name] = (noise & finite).view(dtype)
    safetensors.numpy.save_file(held, folder / f"model-{part + 1}-of-5.safetensors")


def peak_of(*arguments, devices):
  """Runs PROGRAM; its highest RssAnon in bytes, and what it prints."""
  command = [sys.executable, "-c", PROGRAM, *arguments]
  flags = f"--xla_force_host_platform_device_count={devices}"  # and code as users have it
  env = environment(XLA_FLAGS=flags)
  peak = 0
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
      for line in status.read_text().splitlines():
        if line.startswith("RssAnon"):
          peak = max(peak, int(line.split()[1]) * 1024)
      time.sleep(0.003)
    printed = process.stdout.read()
  assert process.returncode == 0
  return peak, [int(number) for number in printed.split()]


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
  "sizes, stored, dtype, devices",
  [
    (DEEP, ml_dtypes.bfloat16, "bfloat16", 1),
    (DEEP, ml_dtypes.bfloat16, "bfloat16", 8),
    (WIDE, np.float32, "bfloat16", 1),
  ],
)
def test_the_host_holds_little_more_than_it_keeps(checkpoint, sizes, stored, dtype, devices):
  folder = checkpoint(sizes, stored)
  on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
  peak, (before, kept) = peak_of(str(folder), str(devices), dtype, devices=devices)
  assert 0.45e9 < on_disk < 0.55e9
  assert kept > 0.99 * on_disk / (np.dtype(stored).itemsize / 2)
  print(f"{devices} devices: {(peak - before) / kept:.3f} times the {kept / 1e9:.2f} GB kept")
  assert peak - before < 1.25 * kept
