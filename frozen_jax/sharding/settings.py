"""How many devices a run is spread over, as a section of a config. Imports no jax."""

import dataclasses
from typing import ClassVar

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshSettings(Section):
  """The device mesh; see `sharding.mesh`. One size may be 0: all devices that the others leave."""

  section: ClassVar[str] = "mesh"

  data: int = setting(
    0,
    "devices that split the rows of a batch; 0: all that the others leave",
    affects_result=False,
    at_least=0,
  )
  fsdp: int = setting(
    1, "devices that split rows and store the weights split", affects_result=False, at_least=0
  )
  tensor: int = setting(1, "devices that split each product", affects_result=False, at_least=0)
  slices: int = setting(
    0,
    "TPU slices that a slower network connects; `data` is split over them. 0: as many as there are",
    affects_result=False,
    at_least=0,
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    check_open_axes({axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor")})


def check_open_axes(sizes: dict[str, int]) -> None:
  """UserError for a mesh in which more than one axis is to take what the others leave."""
  open_axes = [f"mesh.{name}" for name, size in sizes.items() if size == 0]
  if len(open_axes) > 1:
    raise UserError(
      f"{' and '.join(open_axes)} are 0; one axis alone can take all devices that the others leave:"
      " give the others a size"
    )
