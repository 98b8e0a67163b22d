"""How many devices a run is spread over, as a section of a config. Imports no jax."""

import dataclasses

from frozen_jax.config.section import setting


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """The device mesh; see `sharding.mesh`. One size may be 0: all devices that the others leave."""

  data: int = setting(
    0, "devices that split the rows of a batch; 0: all that the others leave", affects_result=False
  )
  fsdp: int = setting(
    1, "devices that split rows and store the weights split", affects_result=False
  )
  tensor: int = setting(1, "devices that split each product", affects_result=False)
