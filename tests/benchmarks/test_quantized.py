"""The real model at fewer bits: what it loses on real text, and what it takes on the device."""

import pathlib

import jax
import pytest

from benchmarks import quantized
from frozen_jax.backbones import decoder
from frozen_jax.backbones.load import load_decoder

TEXT = pathlib.Path(__file__).parents[2] / quantized.TEXT
WINDOWS = (2, 512)


def read(loaded):
  return quantized.perplexity(loaded, quantized.windows(loaded, TEXT, *WINDOWS))


@pytest.fixture(scope="module")
def in_full(smollm2):
  if not TEXT.is_file():
    pytest.skip(f"the text {TEXT} is not there")
  return read(smollm2)


@pytest.mark.parametrize("kind,rise,memory", [("int8", 0.01, 0.55), ("int4", 0.08, 0.32)])
def test_perplexity_and_memory(smollm2, in_full, kind, rise, memory):
  loaded = load_decoder("smollm2-135m-instruct", quantize=kind, progress=False)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(decoder.param_shapes(loaded.config)))
  assert quantized.device_bytes(loaded.params) <= memory * 2 * numbers
  assert loaded.fingerprint == smollm2.fingerprint
  assert read(loaded) <= (1 + rise) * in_full
