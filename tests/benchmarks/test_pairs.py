"""The parts of the benchmarks: taking turns, and that the peer gets the same model."""

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import hf_copy, pairs, training_step, work
from frozen_jax.backbones import decoder
from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.backbones.load import Decoder


class Stub:
  """A side that says how long it took, from a list."""

  def __init__(self, log, name, seconds):
    self.log, self.name, self.seconds = log, name, iter(seconds)

  def ask(self, word):
    self.log.append((self.name, word))
    if word == "step":
      return {"seconds": next(self.seconds), "loss": 2.5}
    return {"matrix": {"flops_per_second": 1e9}, "end": {"peak_bytes": 3}}[word]


def test_sides_take_turns_and_ratios_are_taken_pair_by_pair():
  log = []
  ours = Stub(log, "ours", [9, 9, 1.0, 2.0, 4.0])
  peer = Stub(log, "peer", [9, 9, 3.0, 4.0, 4.0])
  result = pairs.compare(ours, peer, pairs=3)
  assert result.ratios() == (1.0, 2.0, 3.0)
  assert (result.median(0), result.median(1)) == (2.0, 4.0)
  assert result.losses == (2.5, 2.5) and result.memory_ratio() == 1.0
  turns = [name for name, word in log if word == "step"]
  assert turns == ["ours", "peer"] * 2 + ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_side_that_dies_says_why():
  with (
    pairs.Side("benchmarks.no_such_module") as side,
    pytest.raises(RuntimeError, match="no_such_module"),
  ):
    side.ask("step")


def test_sides_that_did_other_work_are_refused():
  with pytest.raises(SystemExit, match="losses differ"):
    training_step._check_losses("work", (13.0, 13.1), ("float32", "float32"))


def test_answers_are_the_end_of_the_same_text():
  everything, answers = (work.make(99, 8, name) for name in ("all", "answers"))
  np.testing.assert_array_equal(everything.tokens, answers.tokens)
  np.testing.assert_array_equal(everything.prompt, answers.prompt)
  assert (everything.targets, answers.targets) == (everything.tokens.shape[1] - 1, work.ANSWER)


def test_both_sides_see_the_same_padding():
  padded = work.make(99, 8, "padded")
  np.testing.assert_array_equal(padded.mask.sum(axis=1), padded.lengths)
  assert (padded.lengths == work.make(1000, 1, "padded").lengths).all()
  assert padded.lengths.min() >= 12 and 0.4 < padded.mask.mean() < 0.8


@pytest.mark.parametrize("tied", [True, False])
def test_the_peer_reads_the_same_model(tmp_path, tied):
  config = DecoderConfig(
    vocab_size=61, width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=40, tied=tied
  )
  params = decoder.random_params(config, jax.random.key(0))
  hf_copy.write(Decoder("tiny", config, params, None, ""), tmp_path)
  peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  tokens = np.arange(14).reshape(2, 7)
  ours = decoder.logits(
    params, config, decoder.hidden(params, config, decoder.embed(params, config, tokens))
  )
  theirs = peer(torch.tensor(tokens)).logits.detach().numpy()
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  assert training_step._parameters(tmp_path) == sum(a.size for a in jax.tree.leaves(params))
