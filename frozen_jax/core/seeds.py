"""Seeds: any integer, for generators that take 32 bits.

JAX (without 64-bit types), Grain and CRC-32 take 32 bits. What cuts a seed to its low bits makes
one run of 0 and 2**32, or of -1 and 2**32 - 1.
"""

import hashlib
import operator


def seed32(seed: int) -> int:
  """The 32-bit seed of an integer: itself from 0 to 2**32 - 1, else 32 bits of its SHA-256.

  Two integers of which one is hashed agree with a chance of 2**-32.
  """
  seed = operator.index(seed)
  if 0 <= seed < 2**32:
    return seed
  return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")
