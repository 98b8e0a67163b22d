"""Runs of `tools.compare`: three seeds, and what it prints."""

import json

import pytest

from frozen_jax.tools import compare
from tests.run.error_line import only_error
from tests.tools.run_records import config, record, write_run


@pytest.fixture
def seeds(tmp_path):
  """Three seeds of a config, of 50, 54 and 58% exact match."""
  return [
    write_run(tmp_path / f"rec-{seed}", record(seed, 50.0 + 4 * seed, 1.0 + seed), config(seed))
    for seed in range(3)
  ]


@pytest.fixture
def output(capsys):
  def run(*arguments):
    status = compare.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out

  return run


@pytest.fixture
def as_json(output):
  return lambda *runs: json.loads(output(*runs, "--format=json"))


@pytest.fixture
def error(capsys):
  def run(*arguments):
    status = compare.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out == ""
    return only_error(status, err.splitlines())

  return run
