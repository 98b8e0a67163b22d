"""Floor 3: what is frozen, what is trained, the loss and the predict functions of each method.

`METHODS` names them; each builder takes the frozen LM and the experiment's options.
"""

from collections.abc import Callable, Mapping
from typing import Any

from frozen_jax.core.types import Base, Method
from frozen_jax.methods import (
  adapters,
  fine_tuning,
  id_pt,
  lora,
  neural_recursion,
  prefix_tuning,
  prompt_tuning,
  textual_recursion,
)

METHODS: dict[str, Callable[[Base, Mapping[str, Any]], Method]] = {
  "zero_shot": prompt_tuning.build_zero_shot,
  "prompt_tuning": prompt_tuning.build,
  "id_pt": id_pt.build,
  "prefix_tuning": prefix_tuning.build,
  "lora": lora.build,
  "adapters": adapters.build,
  "fine_tuning": fine_tuning.build,
  "textual_recursion": textual_recursion.build,
  "neural_recursion": neural_recursion.build,
}
