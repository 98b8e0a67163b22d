"""What loading costs in host memory: a random checkpoint of 1 GB, in a process of its own.

Sampled from outside is RssAnon, the memory that is the process's own. VmHWM would count the pages
of the mapped files as well, which the kernel drops as soon as anybody wants them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from frozen_jax.backbones import assemble, families
from frozen_jax.backbones.families.table import Family

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
  "model_type": "llama",
  "vocab_size": 32_000,
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_hidden_layers": 26,
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A Llama of 0.5 G numbers in five bfloat16 files, written tensor by tensor."""
  folder = tmp_path_factory.mktemp("large")
  (folder / "config.json").write_text(json.dumps(SETTINGS))
  family: Family = families.family_of("llama", "hf", "here")
  config = families.read_config(family, "hf", SETTINGS, "here")
  tensors = {
    name: leaf.stored_shape for leaf in assemble.plan(config, family, "hf") for name in leaf.names
  }
  rng = np.random.default_rng(0)
  names = sorted(tensors)
  for part in range(5):
    held = {}
    for name in names[part::5]:
      bits = rng.integers(0, 2**16, tensors[name], np.uint16) & 0xBFFF  # finite: below 2
      held[name] = bits.view(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(held, folder / f"model-{part + 1}-of-5.safetensors")
  return folder


def peak_of(*arguments, devices):
  """Runs PROGRAM; its highest RssAnon in bytes, and what it prints."""
  flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
  environment = os.environ | flags | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", PROGRAM, *arguments]
  peak = 0
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
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
@pytest.mark.parametrize("devices", [1, 8])
def test_the_host_holds_little_more_than_what_it_keeps(checkpoint, devices):
  peak, (before, kept) = peak_of(str(checkpoint), str(devices), "bfloat16", devices=devices)
  assert 0.95e9 < kept < 1.1e9
  print(f"{devices} devices: {(peak - before) / kept:.3f} times the {kept / 1e9:.2f} GB kept")
  assert peak - before < 1.25 * kept
