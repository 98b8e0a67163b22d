"""The re-ranker: a cross-encoder that scores a passage by reading it together with the question.

    [question, passage] -> text encoder -> first state -> head -> score        (docs/paper.md, 3)

The frozen LM has no part in it, so it is no `Method` but a `Learner`, of the same form where that
fits: it starts from the encoder and head that it was built with, so `init` takes only a key.
Trained is the head and, by `train`, the whole encoder (the default: it is the small network),
low-rank updates of its products (Hu et al. 2021), or nothing of it. The loss is the listwise
softmax (Cao et al. 2007): the negative log-likelihood of the right passage among its question's
passages.

Dropout is in the head only. Low-rank updates are added to the weights before each pass rather than
next to each product: the encoder is small, and is then computed and saved like any other.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from frozen_jax.backbones import encoder as text_encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.masking import MASKED_SCORE
from frozen_jax.core.types import Metrics, Pairs, Tree
from frozen_jax.methods.lora import LoraSettings, check_lora, init_updates, scaled_updates
from frozen_jax.modules import score_head
from frozen_jax.modules.score_head import HeadConfig

TRAINED = ("encoder", "lora", "head")
LORA = LoraSettings(targets=("attn/q", "attn/v"))  # the default


@dataclasses.dataclass(frozen=True)
class ReRanker:
  """A cross-encoder; a hashable value, as a `Method` is.

  encoder       sizes of the text encoder
  head          form of the head
  train         what is trained alongside the head: "encoder", "lora" or "head" (nothing)
  lora          for "lora"
  dtype         in which the encoder's matrices multiply; trained parameters are float32 always
  remat         what a layer keeps for the backward pass, see `core.remat`
  initial       the encoder's weights, from which "encoder" starts
  initial_head  the head's known parameters, in the layout of `score_head`; the others are random

  Where `train` is "encoder" the frozen tree is empty, else it is {"encoder": weights}.
  """

  encoder: EncoderConfig
  head: HeadConfig
  train: str = "encoder"
  lora: LoraSettings = LORA
  dtype: str = "float32"
  remat: str = "none"
  initial: Tree = dataclasses.field(default=None, compare=False)
  initial_head: Tree = dataclasses.field(default=None, compare=False)

  name: ClassVar[str] = "re_ranker"
  no_decay: ClassVar[tuple[str, ...]] = ()

  @classmethod
  def build(
    cls,
    encoder: Any,
    head: HeadConfig,
    initial_head: Tree = None,
    *,
    train: str = "encoder",
    lora: LoraSettings = LORA,
    dtype: str = "float32",
    remat: str = "none",
  ) -> "ReRanker":
    """A re-ranker over an encoder of `load_encoder`.

    Args:
      encoder: with config and params.
      head, initial_head: as read by `export.cross_encoder`, or a new head.
      train, lora, dtype, remat: see the class.

    Raises:
      UserError: `encoder` is none; an unknown `train` or dtype; updates of products that it lacks.
    """
    config = getattr(encoder, "config", None)
    if not isinstance(config, EncoderConfig):
      name = getattr(encoder, "name", type(encoder).__name__)
      raise UserError(f"{name} is no text encoder; a re-ranker needs one, such as minilm-l6-v2")
    if train not in TRAINED:
      raise UserError(f"train is {train!r}; a re-ranker trains one of {', '.join(TRAINED)}")
    if dtype not in ("float32", "bfloat16"):
      raise UserError(f"dtype is {dtype!r}; choose float32 or bfloat16")
    if train == "lora":
      check_lora(lora, text_encoder.param_shapes(config), "encoder")
    config = dataclasses.replace(config, pooling="", normalise=False, vector_width=0)
    return cls(config, head, train, lora, dtype, remat, encoder.params, initial_head)

  def init(self, key: PRNGKeyArray) -> Tree:
    """Trained tree, float32: {"head": ..., "encoder"?: ..., "lora"?: see `lora.init_updates`}."""
    head_key, lora_key = jax.random.split(key)
    head = paths.flatten(score_head.init_params(self.encoder.width, self.head, head_key))
    known = paths.flatten(self.initial_head or {})
    head = paths.unflatten(head | {path: jnp.asarray(leaf) for path, leaf in known.items()})
    tree = {"head": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), head)}
    if self.train == "encoder":
      tree["encoder"] = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self.initial)
    if self.train == "lora":
      tree["lora"] = init_updates(self.lora, text_encoder.param_shapes(self.encoder), lora_key)
    return tree

  def frozen(self) -> Tree:
    """The frozen tree that belongs to it."""
    return {} if self.train == "encoder" else {"encoder": self.initial}

  def weights(self, trainable: Tree, frozen: Tree) -> Tree:
    """The encoder's weights, updates included: the tree of `encoder.param_shapes`."""
    if self.train == "encoder":
      return trainable["encoder"]
    weights = jax.lax.stop_gradient(frozen["encoder"])
    if self.train == "head":
      return weights
    leaves, updates = paths.flatten(weights), scaled_updates(self.lora, trainable["lora"])
    for target in self.lora.targets:
      block, name = target.split("/")
      update, path = updates[block][name], f"layers/{target}/kernel"
      leaves[path] = leaves[path] + update["a"] @ update["b"]
    return paths.unflatten(leaves)

  def network(self, trainable: Tree, frozen: Tree) -> Tree:
    """The argument of `scores`, once for many texts: {"encoder": in `dtype`, "head": ...}."""
    weights = self.weights(trainable, frozen)
    cast = lambda leaf: leaf.astype(self.dtype)
    return {"encoder": jax.tree.map(cast, weights), "head": trainable["head"]}

  def scores(
    self,
    network: Tree,
    batch: Pairs | Mapping[str, Any],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "... texts"]:
    """The score of each text of `core.types.Pairs`, float32; any number of axes before texts and T.

    Higher is likelier; there is no unit. A text without real tokens gets a number without meaning.
    `network`: what the method `network` returns; `key` drives dropout, None switches it off.
    """
    shape = batch["mask"].shape  # [..., texts, T]
    tokens, types = (
      jnp.asarray(batch[name]).reshape(-1, shape[-1]) for name in ("tokens", "types")
    )
    texts = jnp.asarray(batch["mask"]).reshape(-1, *shape[-2:])  # [R, texts, T]
    mask = (texts * jnp.arange(1, shape[-2] + 1, dtype=texts.dtype)[:, None]).sum(axis=1)
    params, trained = network["encoder"], self.train != "head"
    x = text_encoder.embed(params, self.encoder, tokens, trained=self.train == "encoder")
    types = types if self.encoder.types > 1 else None
    states = lambda *positions: text_encoder.hidden(
      params, self.encoder, x, mask, types, *positions, trained=trained, remat=self.remat
    ).astype(jnp.float32)
    if self.head.pooling == "first":
      pooled = states(texts.argmax(axis=-1))  # [R, texts, De]
    else:
      pooled = _mean_states(states(), texts)
    pooled = pooled.reshape(-1, pooled.shape[-1])
    return score_head.scores(network["head"], self.head, pooled, key).reshape(shape[:-1])

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Pairs, key: PRNGKeyArray | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """Mean negative log-likelihood in nats of each question's first passage among its passages.

    Metrics: `targets` and `rows` count questions, `correct` those whose first passage has the
    highest score, `tokens` the real tokens read.
    """
    text_index = jnp.asarray(batch["text_index"])  # [U, Q, G]
    scores = self.scores(self.network(trainable, frozen), batch, key).reshape(
      len(text_index), 1, -1
    )
    scores = jnp.take_along_axis(scores, jnp.maximum(text_index, 0), axis=2)
    scores = jnp.where(text_index >= 0, scores, MASKED_SCORE)
    is_question = text_index[..., 0] >= 0
    losses = jnp.where(is_question, -jax.nn.log_softmax(scores)[..., 0], 0.0)
    count = is_question.sum()
    metrics = {
      "targets": count,
      "tokens": jnp.asarray(batch["mask"]).sum(),
      "rows": count,
      "correct": ((scores.argmax(-1) == 0) & is_question).sum(),
    }
    return losses.sum() / jnp.maximum(count, 1), metrics


def _mean_states(
  states: Float[Array, "R T De"], texts: Int[Array, "R texts T"]
) -> Float[Array, "R texts De"]:
  """The mean of each text's states; `texts` is 1 for its tokens."""
  real = texts.astype(jnp.float32)
  return jnp.einsum("npt,ntd->npd", real, states) / jnp.maximum(real.sum(-1, keepdims=True), 1)
