"""Second passes without anything trained: recirculation and looping (docs/paper.md, 4.3).

Recirculation (Mozer et al., 2026): the stream before layer `write` is moved a share `alpha` towards
the states before layer `read`, which are scaled to its size, and the layers from `write` on run
again. In the parallel form all tokens of a text do so at once, and the second pass predicts. In the
serial form (`serial_passes`) they do so one by one: the first pass predicts, and later tokens
attend to the keys and values of the second.

Looping: the layers from `start` to `stop` run several times, each time from a stream that is moved
a share `damping` towards what they made of it before.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.backbones.config import DecoderConfig
from frozen_jax.config.section import Section, setting
from frozen_jax.core.types import Base, Prompts, Tree
from frozen_jax.methods.layer_passes import Added, Junction, LayerPasses, PositionJunction
from frozen_jax.methods.layered import Layered
from frozen_jax.methods.serial_passes import SerialPasses
from frozen_jax.modules.position_connectors import mix
from frozen_jax.modules.settings import LAYER, layers_between

_FORMS = {"parallel": LayerPasses, "serial": SerialPasses}


@dataclasses.dataclass(frozen=True)
class RecirculationSettings(Section):
  """Recirculation, which trains nothing."""

  section: ClassVar[str] = "recirculation"

  read: str = setting("0.42", "how many layers have run where states are read", pattern=LAYER)
  write: str = setting("0.15", "how many layers have run where they are mixed in", pattern=LAYER)
  alpha: float = setting(0.15, "share of the states in the mix; 0: the LM", at_least=0, at_most=1)
  form: str = setting(
    "parallel",
    "parallel: the second pass predicts; serial (slow): the first, and later tokens attend to the"
    " second",
    choices=tuple(_FORMS),
  )


@dataclasses.dataclass(frozen=True)
class LoopedSettings(Section):
  """Looping of middle layers, which trains nothing."""

  section: ClassVar[str] = "looped"

  start: str = setting("0.25", "how many layers have run before the loop", pattern=LAYER)
  stop: str = setting("0.75", "how many layers have run at its end", pattern=LAYER)
  repeats: int = setting(1, "how often the loop runs again", at_least=1)
  damping: float = setting(0.1, "share of the new stream; 0: the LM", at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Mix(PositionJunction):
  """The junction that moves the stream by a share towards the states.

  matched: whether the states get the size of the stream first.
  """

  share: float | Float[Array, ""]
  matched: bool

  def next_input(
    self, handed: Float[Array, "B T D"], below: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    """See `PositionJunction.next_input`."""
    moved = mix(handed, below, self.share) if self.matched else self.share * (handed - below)
    return below + moved.astype(below.dtype)


@dataclasses.dataclass(frozen=True)
class _Untrained(Layered):
  """Layers that run again, with a fixed junction; the trained tree is {}."""

  layers: LayerPasses
  mix: Mix

  learning_rates: ClassVar[Mapping[str, float]] = {}
  no_decay: ClassVar[tuple[str, ...]] = ()
  reads_encoder: ClassVar[bool] = False
  encoder_input: ClassVar[str] = ""

  @property
  def decoder(self) -> DecoderConfig:
    """Of the frozen LM."""
    return self.layers.decoder

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Nothing is trained: {}."""
    del base, key
    return {}

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`: there are none."""
    del trainable, frozen
    return 0

  def added(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, key: PRNGKeyArray | None
  ) -> Added:
    """See `Layered.added`."""
    del trainable, frozen, prompts, key
    return Added(None, lambda below, first: None, self.mix)

  def junction(self, trainable: Tree, frozen: Tree, key: PRNGKeyArray | None = None) -> Junction:
    """See `Layered.junction`."""
    del trainable, frozen, key
    return self.mix


class Recirculation(_Untrained):
  """A second pass from the mix of a middle layer's stream with a higher one's states."""

  name: ClassVar[str] = "recirculation"
  sections: ClassVar[Mapping[str, type]] = {"recirculation": RecirculationSettings}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "Recirculation":
    """See `core.types.Method.build`."""
    del datasets
    settings = sections["recirculation"]
    write, read = layers_between(settings, "write", "read", base.config.layers)
    passes = _FORMS[settings.form](base.config, write, read, 2, remat)
    return cls(passes, Mix(settings.alpha, matched=True))


class Looped(_Untrained):
  """Middle layers that run several times, damped."""

  name: ClassVar[str] = "looped"
  sections: ClassVar[Mapping[str, type]] = {"looped": LoopedSettings}

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "Looped":
    """See `core.types.Method.build`."""
    del datasets
    settings = sections["looped"]
    start, stop = layers_between(settings, "start", "stop", base.config.layers)
    passes = LayerPasses(base.config, start, stop, settings.repeats + 1, remat, normed=False)
    return cls(passes, Mix(settings.damping, matched=False))
