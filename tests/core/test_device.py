"""Sizes by backend, and the memory that they are chosen by."""

from types import SimpleNamespace

import jax
import pytest

from frozen_jax.core import device


@pytest.mark.parametrize("backend, size", [("cpu", 1), ("gpu", 2), ("tpu", 2)])
def test_sizes_go_by_the_backend(monkeypatch, backend, size):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  assert device.per_backend({"cpu": 1, "gpu": 2}) == size


@pytest.mark.parametrize("stats, memory", [({"bytes_limit": 100}, 100), (None, 2**33)])
def test_memory_is_that_of_one_device(monkeypatch, stats, memory):
  one = SimpleNamespace(memory_stats=lambda: stats)
  monkeypatch.setattr(jax, "local_devices", lambda: [one] * 2)
  device.memory_bytes.cache_clear()
  assert device.memory_bytes() == memory
  device.memory_bytes.cache_clear()
