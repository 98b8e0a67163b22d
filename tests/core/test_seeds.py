"""Any integer is a seed of its own, wherever a seed enters."""

import jax
import numpy as np
import pytest

from frozen_jax.core.seeds import seed32
from frozen_jax.core.types import Prompt
from frozen_jax.data.mixture import shuffled_order
from frozen_jax.data.pairs import GroupBatches
from frozen_jax.data.settings import MixtureSettings
from frozen_jax.decoding.requests import Sampling, seed_of
from frozen_jax.pipelines.propose_select.folds import folds_of
from frozen_jax.pipelines.propose_select.rendering import render
from frozen_jax.pipelines.propose_select.settings import CandidateSettings
from frozen_jax.run.stage import stage_key
from tests.re_ranking import PASSAGES, groups, pair_encoder

# Each with those that its low 32 bits, its absolute value or its remainder would make of it.
SEEDS = (0, 1, -1, 2**31, -(2**31), 2**32 - 1, 2**32, 2**32 + 1, -(2**32), 20261128143000)
SEEDS += (20261128143000 % 2**32, 2**64, -(2**64), 10**30, 10**30 % 2**32)


def test_a_seed_of_32_bits_is_itself_and_others_are_their_own():
  assert [seed32(seed) for seed in (0, 7, 2**31, 2**32 - 1)] == [0, 7, 2**31, 2**32 - 1]
  many = [*SEEDS, *range(1, 2000), *range(-2000, -1), *range(2**32 + 2, 2**32 + 2000)]
  found = [seed32(seed) for seed in dict.fromkeys(many)]
  assert len(set(found)) == len(found) and all(0 <= one < 2**32 for one in found)
  assert seed32(np.int64(-5)) == seed32(-5) and seed32(np.uint64(2**63)) == seed32(2**63)
  with pytest.raises(TypeError):
    seed32(1.5)


ROW = {"id": "PE/0", "question": "Which?", "answers": ["a"]}
ROW |= {"samples": [[f"candidate {number}", -1.0] for number in range(8)]}
MIXED = MixtureSettings("proportional")


def rendered(seed):
  settings = CandidateSettings(max_candidates=8)
  return tuple(row["input"] for row in render(ROW, settings, permutations=3, seed=seed))


def drawn_pairs(seed):
  batches = GroupBatches(groups(), PASSAGES.__getitem__, pair_encoder(), 4, seed=seed)
  return next(batches)["tokens"].tobytes()


def order(seed, dataset_index=None, mixture=MIXED):
  drawn = shuffled_order(40, dataset_index, mixture, seed)
  return tuple(int(drawn[position]) for position in range(40))


STREAMS = {
  "order of examples": order,
  "order of a mixture": lambda seed: order(seed, np.repeat([0, 1], 20)),
  "question groups": drawn_pairs,
  "folds": lambda seed: folds_of([{"id": str(n)} for n in range(60)], 3, seed).tobytes(),
  "permutations": rendered,
  "sampling": lambda seed: seed_of(Sampling(4, seed=seed), Prompt([5, 6])),
  "a stage": lambda seed: tuple(jax.random.key_data(stage_key(seed, "prompt")).tolist()),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_each_seed_gives_its_own_stream_and_the_same_again(stream):
  draw = STREAMS[stream]
  found = {seed: draw(seed) for seed in SEEDS}
  assert len(set(found.values())) == len(SEEDS)
  assert draw(-1) == found[-1] and draw(2**32) == found[2**32]
