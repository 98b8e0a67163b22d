"""Second passes without anything trained: recirculation and looping (docs/paper.md, 4.3).

Recirculation (Mozer et al., 2026): the stream before layer `write` is moved a share `alpha` towards
the states before layer `read`, which are scaled to its size, and the layers from `write` on run
again. In the parallel form all tokens of a pass do so at once, and the second pass predicts. In the
serial form tokens are read one after the other: the first pass predicts, and later tokens attend to
the keys and values of the second.

Looping: the layers from `start` to `stop` run several times, each time from a stream that is moved
a share `damping` towards what they made of it before.
"""

import dataclasses
from typing import ClassVar, NamedTuple

from frozen_jax.config.section import Section, setting
from frozen_jax.modules.position_connectors import mix
from frozen_jax.modules.settings import LAYER


@dataclasses.dataclass(frozen=True)
class RecirculationSettings(Section):
  """Recirculation, which trains nothing."""

  section: ClassVar[str] = "recirculation"

  read: str = setting("0.42", "how many layers have run where states are read", pattern=LAYER)
  write: str = setting("0.15", "how many layers have run where they are mixed in", pattern=LAYER)
  alpha: float = setting(0.15, "share of the states in the mix; 0: the LM", at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class LoopedSettings(Section):
  """Looping of middle layers, which trains nothing."""

  section: ClassVar[str] = "looped"

  start: str = setting("0.4", "how many layers have run before the loop", pattern=LAYER)
  stop: str = setting("0.6", "how many layers have run at its end", pattern=LAYER)
  repeats: int = setting(1, "how often the loop runs again", at_least=1)
  damping: float = setting(0.1, "share of the new stream; 0: the LM", at_least=0, at_most=1)


class Mix(NamedTuple):
  """The junction that moves the stream by a share towards the states; see `layer_passes.Junction`.

  matched: whether the states get the size of the stream first.
  """

  share: float
  matched: bool

  def text(self, index, handed, below, mask, free_slots):
    """See `Junction`."""
    return self._mixed(handed, below), ()

  def step(self, handed, below, cache):
    """See `Junction`."""
    return self._mixed(handed, below), cache

  def after_cache(self, handed, below, cache, mask):
    """See `Junction`."""
    return self._mixed(handed, below)

  def _mixed(self, handed, below):
    moved = mix(handed, below, self.share) if self.matched else self.share * (handed - below)
    return below + moved.astype(below.dtype)
