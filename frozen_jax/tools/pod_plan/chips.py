"""What one chip can do at most, by the name of its topology.

Matrix products, memory and its bandwidth are the maker's figures
(cloud.google.com/tpu/docs/system-architecture-tpu-vm). Of the links between chips the figure is
what is reached: one way, all links of a chip together (jax-ml.github.io/scaling-book/tpus).
"""

import dataclasses

from frozen_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip: products in bfloat16 (FLOP/s), memory (bytes), its bandwidth and that of its links
  (bytes/s)."""

  name: str
  flops: float
  memory: float
  memory_bandwidth: float
  link_bandwidth: float


CHIPS = {
  "v4": Chip("TPU v4", 275e12, 32e9, 1228e9, 6 * 45e9),
  "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 4 * 45e9),
  "v5p": Chip("TPU v5p", 459e12, 95e9, 2765e9, 6 * 90e9),
  "v6e": Chip("TPU v6e", 918e12, 32e9, 1640e9, 4 * 90e9),
}


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as "v5p:4x4x8"; UserError for another name."""
  kind, colon, shape = topology.partition(":")
  if kind not in CHIPS or not colon or not all(n.isdecimal() and int(n) for n in shape.split("x")):
    raise UserError(
      f"--topology={topology} is no topology; give a kind of chip ({', '.join(CHIPS)}), a colon and"
      " the numbers of chips along each axis, such as v5e:16x16 or v5p:4x4x8"
    )
  return CHIPS[kind]
