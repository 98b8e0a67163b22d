"""Floor 3: what is frozen, what is trained, the loss and the predict functions of each method.

`METHODS` names them; each builder takes the frozen LM and the experiment's options.
"""

from frozen_jax.methods import neural_recursion, prompt_tuning

METHODS = {
  "zero_shot": prompt_tuning.build_zero_shot,
  "prompt_tuning": prompt_tuning.build,
  "neural_recursion": neural_recursion.build,
}
