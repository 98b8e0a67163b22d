"""The sides of `decoding` do the same work; what the rows and the soak's figures say."""

import json
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import decoding, decoding_side, hf_copy, pairs, soak
from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.load import Decoder
from frozen_jax.models.frozen_lm import FrozenLM

CONFIG = DecoderConfig(
  vocab_size=61, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=40, context=256
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("model")
  params = decoder.random_params(CONFIG, jax.random.key(0))
  hf_copy.write(Decoder("tiny", CONFIG, params, None, ""), made)
  return str(made)


def test_prompts_are_of_mixed_lengths_and_the_same_in_every_process():
  made = decoding_side.prompts(64, 61)
  lengths = [len(ids) for ids in made]
  assert made == decoding_side.prompts(64, 61) and made != decoding_side.prompts(64, 61, seed=1)
  assert min(lengths) < 16 and 64 < max(lengths) <= 128
  assert all(3 <= token < 61 for ids in made for token in ids)


def test_all_sides_draw_the_same_tokens_where_nothing_is_left_to_chance(folder):
  """At next to no temperature all samples are the likeliest text."""
  sides = [decoding_side.ours, decoding_side.separate, decoding_side.peer]
  found = [side(folder, "float32", 4, 5)(2, 6, 1e-5) for side in sides]
  assert found[0] == found[1] == found[2]
  assert decoding_side.drawn(found[0]) == 5 * 2 * 6


def test_samples_of_one_prompt_differ(folder):
  for side in (decoding_side.ours, decoding_side.separate, decoding_side.peer):
    found = side(folder, "float32", 8, 3)(4, 6, 1.0)
    assert decoding_side.drawn(found) == 3 * 4 * 6
    assert len({tuple(ids) for ids in found[0]}) > 1


class Stub:
  """A side that takes as long as its dtype and batch say."""

  def __init__(self, log, name, how, sizes):
    self.log, self.name, self.sizes = log, name, sizes
    self.seconds = {"float32": 4.0, "bfloat16": 2.0}[how[0]] / how[1]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def ask(self, word):
    self.log.append((self.name, word, self.sizes))
    answers = {"step": {"seconds": self.seconds, "loss": 30.0}, "end": {"peak_bytes": 10}}
    return answers.get(word, {"flops_per_second": math.inf})


def test_each_side_is_measured_at_its_best(monkeypatch, capsys):
  log = []
  monkeypatch.setattr(
    decoding, "_side", lambda name, how, sizes, options, folder: Stub(log, name, how, sizes)
  )
  options = SimpleNamespace(
    dtypes=decoding.DTYPES, batches=[2, 8], rows=[2, 4], prompts=3, samples=2, new=5, pairs=2
  )
  rows = {row["work"]: row for row in decoding.measure(options, "")}
  wide, best, shared = (
    rows[f"decoding_{name}"] for name in ("float32", "best_dtype", "shared_prefill")
  )
  hows = [
    tuple(row[f"{side}_{key}"] for key in ("dtype", "batch_size") for side in ("ours", "peer"))
    for row in (wide, best)
  ]
  assert hows == [("float32", "float32", 4, 8), ("bfloat16", "bfloat16", 4, 8)]
  assert (wide["ours"], wide["peer"], wide["ratio"]) == (30.0, 60.0, 0.5)
  assert shared["peer_name"] == "a prefill for each sample" and shared["ratio"] == 1
  assert {sizes for _, word, sizes in log if word == "step"} == {(1, decoding.TRIED), (3, 5)}
  assert "decoding_best_dtype: 0.50 times transformers" in capsys.readouterr().out


def test_sides_that_drew_another_number_of_tokens_are_refused():
  measured = pairs.Comparison([(1.0, 1.0)], (30.0, 29.0), (1, 1), (1.0, 1.0), ({}, {}))
  with pytest.raises(SystemExit, match="29.0.* and not 30 by each side"):
    decoding.row_of("work", measured, 30, "peer", (("float32", 1),) * 2)


# --- soak


def looks(resident, compiled):
  each = enumerate(zip(resident, compiled, strict=True), start=1)
  return [soak.Look(60.0 * n, 10 * n, 600 * n, memory, count) for n, (memory, count) in each]


def test_growth_and_compiling_count_after_the_warm_up():
  found = soak.judged(looks([5e8, 9e8, 1e9, 1.01e9, 1.02e9], [7, 9, 9, 11, 11]), 20)
  assert found["slope_mb_per_minute"] == pytest.approx(10)
  assert found["growth"] == pytest.approx(0.02) and found["resident_mb"] == pytest.approx(1000)
  assert (found["compiled"], found["compiled_before"]) == (2, 9)
  assert found["tokens_per_second"] == 10
  with pytest.raises(SystemExit, match="2 calls come after the warm-up"):
    soak.judged(looks([1] * 5, [1] * 5), 30)


def test_a_tiny_soak(folder, monkeypatch, tmp_path, capsys):
  """The first run compiles after a warm-up of nothing; the second finds everything there."""
  lm = FrozenLM("tiny", CONFIG, decoder.random_params(CONFIG, jax.random.key(0)), None, "")
  monkeypatch.setattr(soak, "load_frozen", lambda name, dtype: lm)
  monkeypatch.setattr(soak, "prompts", lambda count, size, seed: [[5, 9, 1 + seed % 7]] * count)
  asked = ["--prompts=40", "--minutes=0", "--call=4", "--new=3", "--growth=0.5"]
  with pytest.raises(SystemExit, match="programs were compiled after the warm-up: .*_steps"):
    soak.main([*asked, "--warm-up=0"])
  soak.main([*asked, "--warm-up=8", f"--json={tmp_path / 'soak.json'}"])
  out = capsys.readouterr().out
  assert "0 programs compiled" in out.splitlines()[-1]
  assert out.splitlines()[-2].split()[1] == "40"
  assert np.isfinite(soak.resident()) and '"compiled": 0' in (tmp_path / "soak.json").read_text()


def test_a_soak_that_grows_ends_with_an_error(monkeypatch):
  sizes = iter(range(10**9, 10**12, 10**8))
  monkeypatch.setattr(soak, "resident", lambda: next(sizes))
  lm = FrozenLM("tiny", CONFIG, decoder.random_params(CONFIG, jax.random.key(0)), None, "")
  monkeypatch.setattr(soak, "load_frozen", lambda name, dtype: lm)
  monkeypatch.setattr(soak, "prompts", lambda count, size, seed: [[5, 9, 1]] * count)
  with pytest.raises(SystemExit, match="memory grew by"):
    soak.main(["--prompts=28", "--minutes=0", "--call=4", "--new=3", "--warm-up=8"])


def test_no_token_ends_a_text(folder, tmp_path):
  """Whatever end tokens the files name."""
  copied = shutil.copytree(folder, tmp_path / "ends")
  (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(61))}))
  draw = decoding_side.ours(str(copied), "float32", 4, 5)
  assert decoding_side.drawn(draw(2, 6, 1.0)) == 5 * 2 * 6
