"""The methods: what each freezes and trains, its loss and its predict functions.

`METHODS` maps the names that configs use to the classes; see `core.types.Method`.
"""

from frozen_jax.core.types import Method
from frozen_jax.methods.adapters import Adapters
from frozen_jax.methods.fine_tuning import FineTuning
from frozen_jax.methods.id_pt import InputDependentPromptTuning
from frozen_jax.methods.lora import Lora
from frozen_jax.methods.neural_recursion import NeuralRecursion
from frozen_jax.methods.p_tuning import PTuning
from frozen_jax.methods.prefix_tuning import PrefixTuning
from frozen_jax.methods.prompt_tuning import PromptTuning
from frozen_jax.methods.recirculation import Looped, Recirculation
from frozen_jax.methods.textual_recursion import TextualRecursion
from frozen_jax.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
  "zero_shot": ZeroShot,
  "prompt_tuning": PromptTuning,
  "p_tuning": PTuning,
  "id_pt": InputDependentPromptTuning,
  "prefix_tuning": PrefixTuning,
  "lora": Lora,
  "adapters": Adapters,
  "fine_tuning": FineTuning,
  "textual_recursion": TextualRecursion,
  "neural_recursion": NeuralRecursion,
  "recirculation": Recirculation,
  "looped": Looped,
}
