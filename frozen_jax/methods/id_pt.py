"""Input-dependent prompt tuning: a prompt generated for each text.

See Levine et al. 2022; docs/paper.md, 2.

    text -> [p', text] -> text encoder (frozen) -> states -> prompt generator -> p(x) -> LM (frozen)

Frozen: the LM and the text encoder. Trained: `encoder_prompt/vectors` (p') before the text that the
encoder reads, the `generator` (cross-attention from learned queries, self-attention, projection),
and the constant part of the prompt, `prompt/vectors`, to which the generator's output is added.

Gradients reach p' through the frozen encoder. Without p' the states of a text are always the same,
and batches may hold them (`encoder_states`) in place of the text.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from frozen_jax.backbones import encoder as text_encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.backbones.prompts import prepend
from frozen_jax.config.section import Section, setting
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Base, Batch, HostOrDevice, Metrics, Prompts, Tree
from frozen_jax.methods.late_prompt import LatePrompt, late_layer
from frozen_jax.methods.prompt_tuning import initial_prompt
from frozen_jax.methods.single_pass import SinglePass
from frozen_jax.modules import soft_prompt
from frozen_jax.modules.nnx_params import module_params, with_params
from frozen_jax.modules.position_connectors import normalised
from frozen_jax.modules.prompt_generator import GeneratorConfig, PromptGenerator
from frozen_jax.modules.settings import PromptSettings, check_heads
from frozen_jax.sharding.activations import constrain_rows

_P_PRIME_KEY = 2**31 - 2  # far from the small numbers that NNX folds into the same key


@dataclasses.dataclass(frozen=True)
class GeneratorSettings(Section):
  """ID-PT's prompt generator; its text encoder is `model.encoder`."""

  section: ClassVar[str] = "generator"

  p_prime_length: int = setting(
    8, "trained vectors before the encoder's text; 0: its states can be cached", at_least=0
  )
  constant: bool = setting(
    True, "a constant prompt, to which the generator adds; False: the plain form"
  )
  width: int = setting(256, "of the generator", at_least=1)
  heads: int = setting(4, "attention heads of the generator", of_weights=True, at_least=1)
  layers: int = setting(1, "self-attention blocks after the cross-attention", at_least=0)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_heads(self)


@dataclasses.dataclass(frozen=True)
class InputDependentPromptTuning(SinglePass):
  """The LM after a prompt that a small network generates for each text.

  encoder          sizes of the text encoder; None: the LM's own states are read
  generator        sizes of the prompt generator
  embedding_rms    root mean square of the LM's token embeddings, the size of the generator's output
  settings         how long the prompt is, and where its constant part starts
  constant         whether there is a constant part
  p_prime_length   of p'; 0: there is none
  """

  encoder: EncoderConfig | None
  generator: GeneratorConfig
  embedding_rms: float
  settings: PromptSettings = dataclasses.field(compare=False)
  constant: bool = True
  p_prime_length: int = 0

  name: ClassVar[str] = "id_pt"
  sections: ClassVar[Mapping[str, type]] = {
    "prompt": PromptSettings,
    "generator": GeneratorSettings,
  }
  learning_rates: ClassVar[Mapping[str, float]] = {
    "generator": 1e-3,
    "prompt": 0.02,
    "encoder_prompt": 0.01,
  }
  no_decay: ClassVar[tuple[str, ...]] = ("prompt/.*", "encoder_prompt/.*")
  reads_encoder: ClassVar[bool] = True

  @classmethod
  def build(
    cls,
    base: Base,
    sections: Mapping[str, Any],
    *,
    remat: str = "none",
    datasets: Sequence[str] = (),
  ) -> "InputDependentPromptTuning":
    """See `core.types.Method.build`."""
    del datasets
    generator, prompt = sections["generator"], sections["prompt"]
    late = late_layer(base, prompt)
    if base.encoder is None and not late:
      raise UserError(
        "ID-PT needs a text encoder; name one, such as --config.model.encoder=minilm-l6-v2, or let"
        " it read the LM's own states with --config.prompt.layer=0.2"
      )
    sizes = {"width": generator.width, "heads": generator.heads, "layers": generator.layers}
    config = GeneratorConfig(prompt.length, **sizes, zero_output=generator.constant)
    kind = LateInputDependentPromptTuning if late else cls
    return kind(
      base.config,
      None if base.encoder is None else base.encoder.config,
      config,
      base.embedding_rms,
      prompt,
      generator.constant,
      0 if base.encoder is None else generator.p_prime_length,
      remat=remat,
      **late,
    )

  @property
  def encoder_input(self) -> str:
    """See `core.types.Method.encoder_input`; p' changes the states whenever it is trained."""
    if self.encoder is None:
      return ""
    return "encoder_tokens" if self.p_prime_length else "encoder_states"

  @property
  def part_positions(self) -> Mapping[str, str]:
    """See `core.types.Method.part_positions`."""
    return dict.fromkeys(self.learning_rates, soft_prompt.position())

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """Trained tree: {"generator": ..., "prompt"?: ..., "encoder_prompt"?: ...}, float32.

    The constant part starts as a prompt of prompt tuning, p' as embeddings of random tokens.
    """
    tree = {"generator": module_params(self._new_generator(key))}
    if self.constant:
      tree["prompt"] = soft_prompt.prompt_params(initial_prompt(base, self.settings, key))
    if self.p_prime_length:
      ids = soft_prompt.random_token_ids(
        jax.random.fold_in(key, _P_PRIME_KEY), self.encoder.vocab_size, self.p_prime_length
      )
      tree["encoder_prompt"] = soft_prompt.prompt_params(base.encoder.embed(ids[None])[0])
    return tree

  def prompt(self, trainable: Tree, frozen: Tree, prompts: Prompts) -> Float[Array, "B P D"]:
    """p(x) of each row, float32."""
    return self._generate(trainable, *self._encoder_states(trainable, frozen, prompts))

  def _generate(
    self,
    trainable: Tree,
    states: Float[HostOrDevice, "B X De"],
    mask: Int[HostOrDevice, "B X"],
  ) -> Float[Array, "B P D"]:
    generated = with_params(self._new_generator, trainable["generator"])(states, mask)
    generated = constrain_rows(generated)
    constant = soft_prompt.prompt_vectors(trainable, "prompt")
    return generated if constant is None else generated + constant

  def num_virtual_tokens(self, trainable: Tree, frozen: Tree) -> int:
    """See `core.types.Method.num_virtual_tokens`."""
    del trainable, frozen
    return self.generator.length

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Batch, key: PRNGKeyArray | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """See `core.types.Method.loss`; `encoder_cached`: rows whose states come from a cache."""
    loss, metrics = super().loss(trainable, frozen, batch, key)
    if "encoder_cached" in batch:
      metrics = {**metrics, "encoder_cached": jnp.asarray(batch["encoder_cached"]).sum()}
    return loss, metrics

  def _encoder_states(self, trainable, frozen, prompts):
    """The generator's input: states [B, X, De] and their mask [B, X], those of p' included.

    Padding beyond the encoder's table of positions is cut off.
    """
    if "encoder_states" in prompts:
      return jnp.asarray(prompts["encoder_states"]), prompts["encoder_mask"]
    params, p_prime = frozen["encoder"], soft_prompt.prompt_vectors(trainable, "encoder_prompt")
    max_tokens = self.encoder.max_tokens - (0 if p_prime is None else len(p_prime))
    tokens, mask = (prompts[name][:, :max_tokens] for name in ("encoder_tokens", "encoder_mask"))
    text = text_encoder.embed(params, self.encoder, tokens)
    x, mask = prepend(p_prime, text, mask)
    return text_encoder.hidden(params, self.encoder, x, mask, remat=self.remat), mask

  def _new_generator(self, key: PRNGKeyArray) -> PromptGenerator:
    rngs, width = nnx.Rngs(key), self.decoder.width
    read = width if self.encoder is None else self.encoder.width
    return PromptGenerator(read, width, self.generator, self.embedding_rms, rngs)


@dataclasses.dataclass(frozen=True)
class LateInputDependentPromptTuning(LatePrompt, InputDependentPromptTuning):
  """ID-PT whose prompt joins the text within the stack (Liu et al., 2022).

  Without a text encoder the generator reads the LM's own states of the question where the prompt
  joins it: nothing but the LM is needed, and its lower layers run once for both.
  """

  def init(self, base: Base, key: PRNGKeyArray) -> Tree:
    """As `InputDependentPromptTuning.init`; the constant part starts as its own states there."""
    tree = super().init(base, key)
    if self.constant:
      start = self.start_vectors(base, tree["prompt"]["vectors"])
      tree["prompt"] = soft_prompt.prompt_params(start)
    return tree

  def late_vectors(
    self, trainable: Tree, frozen: Tree, prompts: Prompts, below: Float[Array, "B T D"]
  ) -> Float[Array, "*B P D"] | None:
    """See `LatePrompt.late_vectors`."""
    if self.encoder is not None:
      return self.prompt(trainable, frozen, prompts)
    return self._generate(trainable, normalised(below), _question_mask(prompts))


def _question_mask(prompts: Prompts) -> Int[HostOrDevice, "B T"]:
  """The mask of what stands before a row's first target: of a training row, its question."""
  mask = prompts["mask"]
  if "target_positions" not in prompts:
    return mask
  length = mask.shape[1]
  positions = jnp.where(prompts["target_mask"] > 0, prompts["target_positions"], length)
  return mask * (jnp.arange(length) <= positions.min(axis=1, keepdims=True))
