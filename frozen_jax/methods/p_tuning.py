"""P-tuning (Liu et al., 2021): a soft prompt that a small MLP produces from trained embeddings.

    embeddings [P, D] -> Linear -> ReLU -> Linear -> ReLU -> Linear -> prompt [P, D] -> LM (frozen)

The MLP is that of PEFT's `P_TUNING` (`PromptEncoder` of type MLP), which has it in place of the
paper's LSTM; as there the prompt is the output of the MLP, without a residual. Frozen: the LM.
Trained: the embeddings, `prompt/vectors`, and the MLP, `prompt_encoder/layer_{0,1,2}/{kernel,
bias}`.

Where training starts is the choice of this project. The embeddings start as those of a text, as in
prompt tuning. The first two layers are random, scaled so that all activations have a root mean
square near 1, and the last layer is solved by least squares so that the MLP maps the embeddings to
themselves: for `width` of at least P exactly, below that as closely as it can. So training starts
where prompt tuning starts, at a prompt that the LM can read; PEFT starts from random vectors of
another size than its embeddings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Prompts, Tree
from frozen_jax.methods.prompt_tuning import initial_prompt
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.settings import PromptSettings, check_at_input


@dataclasses.dataclass(frozen=True)
class PTuningSettings(Section):
  """P-tuning; the length and the start of the prompt are those of `prompt`."""

  section: ClassVar[str] = "p_tuning"

  width: int = setting(
    128, "of the two hidden layers of the MLP that produces the prompt", at_least=1
  )


@dataclasses.dataclass(frozen=True)
class PTuning(SinglePass):
  """The LM after a prompt that an MLP of hidden width `width` produces."""

  settings: PromptSettings = dataclasses.field(compare=False)
  width: int

  name: ClassVar[str] = "p_tuning"
  sections: ClassVar[Mapping[str, type]] = {"prompt": PromptSettings, "p_tuning": PTuningSettings}
  learning_rates: ClassVar[Mapping[str, float]] = {"prompt": 0.02, "prompt_encoder": 1e-3}
  no_decay: ClassVar[tuple[str, ...]] = ("prompt/.*",)

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "PTuning":
    """See `core.types.Method.build`."""
    del datasets
    settings, width = sections["prompt"], sections["p_tuning"].width
    check_at_input(settings, cls.name)
    if settings.per_task:
      raise UserError("p_tuning has one prompt for all data sets; set prompt.per_task=False")
    return cls(base.config, settings, width, remat=remat)

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`; the MLP's input is no prompt of the LM."""
    return {"prompt": "before the prompt encoder"}

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"prompt": {"vectors"}, "prompt_encoder": {"layer_0", ...}}, float32."""
    embeddings = initial_prompt(base, self.settings, key)
    encoder = _initial_mlp(embeddings, self.width, key)
    return {"prompt": soft_prompt.prompt_params(embeddings), "prompt_encoder": encoder}

  def prompt(self, trainable: Tree, frozen: Tree, prompts: Prompts) -> Float[Array, "P D"]:
    """The output of the MLP, float32."""
    del frozen, prompts
    return _mlp(trainable["prompt_encoder"], trainable["prompt"]["vectors"])

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    del frozen
    return trainable["prompt"]["vectors"].shape[0]


def _mlp(encoder: Tree, x: Float[Array, "P D"]) -> Float[Array, "P D"]:
  hidden = _hidden(encoder, x)
  return hidden @ encoder["layer_2"]["kernel"] + encoder["layer_2"]["bias"]


def _hidden(encoder: Tree, x: Float[Array, "P D"]) -> Float[Array, "P d"]:
  """The activations before the last layer."""
  for name in ("layer_0", "layer_1"):
    x = jax.nn.relu(x @ encoder[name]["kernel"] + encoder[name]["bias"])
  return x


def _initial_mlp(embeddings: Float[Array, "P D"], width: int, key: PRNGKeyArray) -> Tree:
  """An MLP that maps the embeddings to themselves, as closely as its width allows."""
  size = jnp.sqrt(jnp.mean(jnp.square(embeddings)))
  keys, lm_width = jax.random.split(key), embeddings.shape[1]
  # After He et al. (2015) for ReLU; the inputs' own size is divided out.
  kernels = [
    jax.random.normal(keys[0], (lm_width, width)) * jnp.sqrt(2 / lm_width) / size,
    jax.random.normal(keys[1], (width, width)) * jnp.sqrt(2 / width),
  ]
  encoder = {
    f"layer_{index}": {"kernel": kernel, "bias": jnp.zeros(width)}
    for index, kernel in enumerate(kernels)
  }
  last = jnp.linalg.pinv(_hidden(encoder, embeddings)) @ embeddings
  return encoder | {"layer_2": {"kernel": last, "bias": jnp.zeros(lm_width)}}
