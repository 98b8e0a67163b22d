"""The re-ranker: a cross-encoder that scores a passage by reading it together with the question.

    [question, passage] -> text encoder -> first state -> head -> score        (METHODS 3)

The frozen LM has no part in it, so it is no `Method` but a `Learner`. Trained is the head and, by
`train`, the whole encoder (the default: it is the small network), low-rank updates of its products
(Hu et al. 2021), or nothing of it. The loss is the listwise softmax (Cao et al. 2007): the negative
log-likelihood of the right passage among its question's passages.

Dropout stands in the head alone. Low-rank updates are added to the weights before each pass rather
than beside each product: the encoder is small, and is then computed and saved as any other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frozen_jax.backbones import encoder as text_encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core import paths
from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Metrics, Pairs, Tree
from frozen_jax.modules import score_head
from frozen_jax.modules.score_head import HeadOptions

TRAINED = ("encoder", "lora", "head")
_NO_PASSAGE = -1e30  # finite, so that a question without passages has a softmax


@dataclasses.dataclass(frozen=True)
class LoraOptions:
  """Low-rank updates: rank, alpha (they count alpha / rank times), and of which products."""

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] = ("attn/q", "attn/v")


@dataclasses.dataclass(frozen=True)
class ReRanker:
  """A cross-encoder; a hashable value, as a `Method` is.

  encoder       sizes of the text encoder
  head          see HeadOptions
  train         what is trained beside the head: "encoder", "lora" or "head" (nothing)
  lora          for "lora"
  dtype         in which the encoder's matrices multiply; what is trained is float32 in any case
  initial       the encoder's weights, from which "encoder" starts
  initial_head  what is known of the head's, in the layout of `score_head`; the rest is random
  remat         recompute each layer in the backward pass

  Where `train` is "encoder" the frozen tree is empty, else it is {"encoder": weights}.
  """

  encoder: EncoderConfig
  head: HeadOptions
  train: str = "encoder"
  lora: LoraOptions = LoraOptions()
  dtype: str = "float32"
  remat: bool = False
  initial: Tree = dataclasses.field(default=None, compare=False)
  initial_head: Tree = dataclasses.field(default=None, compare=False)
  name: str = "re_ranker"

  def init(self, key: jax.Array) -> Tree:
    """Trained tree, float32: {"head": ..., "encoder"?: ..., "lora"?: {BLOCK: {NAME: {"a", "b"}}}}.

    Of an update, a is random and b zero: training starts from the encoder as it comes.
    """
    head_key, lora_key = jax.random.split(key)
    head = score_head.fresh(self.encoder.width, self.head, head_key)
    known = paths.flatten(self.initial_head or {})
    head = paths.unflatten(paths.flatten(head) | {p: jnp.asarray(a) for p, a in known.items()})
    tree = {"head": jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), head)}
    if self.train == "encoder":
      tree["encoder"] = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), self.initial)
    if self.train == "lora":
      tree["lora"] = self._fresh_updates(lora_key)
    return tree

  def frozen(self) -> Tree:
    """The frozen tree that belongs to it."""
    return {} if self.train == "encoder" else {"encoder": self.initial}

  def weights(self, trainable: Tree, frozen: Tree) -> Tree:
    """The encoder's weights as they stand, updates included: the tree of `encoder.param_shapes`."""
    if self.train == "encoder":
      return trainable["encoder"]
    held = jax.lax.stop_gradient(frozen["encoder"])
    if self.train == "head":
      return held
    leaves, scale = paths.flatten(held), self.lora.alpha / self.lora.rank
    for target in self.lora.targets:
      block, name = target.split("/")
      update, path = trainable["lora"][block][name], f"layers/{target}/kernel"
      leaves[path] = leaves[path] + scale * update["a"] @ update["b"]
    return paths.unflatten(leaves)

  def network(self, trainable: Tree, frozen: Tree) -> Tree:
    """What scores: {"encoder": the weights as they multiply, "head": ...}; once for many texts."""
    weights = self.weights(trainable, frozen)
    narrow = lambda leaf: leaf.astype(self.dtype)
    return {"encoder": jax.tree.map(narrow, weights), "head": trainable["head"]}

  def scores(
    self,
    network: Tree,
    batch: Pairs | Mapping[str, Any],
    key: jax.Array | None = None,
  ) -> Float[Array, "... P"]:
    """The score of each text of `core.types.Pairs`, float32; any number of axes before P and T.

    The higher the likelier, without a unit. A text without real tokens gets a number without
    meaning. `network` is that of `network`; `key` drives dropout, None switches it off.
    """
    shape = batch["mask"].shape  # [..., P, T]
    tokens, types = (
      jnp.asarray(batch[name]).reshape(-1, shape[-1]) for name in ("tokens", "types")
    )
    texts = jnp.asarray(batch["mask"]).reshape(-1, *shape[-2:])  # [N, P, T]
    mask = (texts * jnp.arange(1, shape[-2] + 1, dtype=texts.dtype)[:, None]).sum(axis=1)
    params, trained = network["encoder"], self.train != "head"
    x = text_encoder.embed(params, self.encoder, tokens, trained=self.train == "encoder")
    types = types if self.encoder.types > 1 else None
    states = lambda *read: text_encoder.hidden(
      params, self.encoder, x, mask, types, *read, trained=trained, remat=self.remat
    ).astype(jnp.float32)
    if self.head.pooling == "first":
      pooled = states(texts.argmax(axis=-1))  # [N, P, D]
    else:
      pooled = _means(states(), texts)
    pooled = pooled.reshape(-1, pooled.shape[-1])
    return score_head.scores(network["head"], self.head, pooled, key).reshape(shape[:-1])

  def loss(
    self, trainable: Tree, frozen: Tree, batch: Pairs, key: jax.Array | None
  ) -> tuple[jax.Array, Metrics]:
    """Mean negative log-likelihood in nats of each question's first passage among all of its own.

    Metrics: `targets` and `rows` count questions, `correct` those whose first passage has the
    highest score, `tokens` the real tokens read.
    """
    places = jnp.asarray(batch["places"])  # [U, Q, G]
    read = self.scores(self.network(trainable, frozen), batch, key).reshape(len(places), 1, -1)
    given = jnp.take_along_axis(read, jnp.maximum(places, 0), axis=2)
    given = jnp.where(places >= 0, given, _NO_PASSAGE)
    asked = places[..., 0] >= 0
    losses = jnp.where(asked, -jax.nn.log_softmax(given)[..., 0], 0.0)
    count = asked.sum()
    metrics = {
      "targets": count,
      "tokens": jnp.asarray(batch["mask"]).sum(),
      "rows": count,
      "correct": ((given.argmax(-1) == 0) & asked).sum(),
    }
    return losses.sum() / jnp.maximum(count, 1), metrics

  def _fresh_updates(self, key: jax.Array) -> Tree:
    shapes = paths.flatten(text_encoder.param_shapes(self.encoder))
    leaves = {}
    for index, target in enumerate(self.lora.targets):
      layers, inputs, outputs = shapes[f"layers/{target}/kernel"].shape
      noise = jax.random.normal(jax.random.fold_in(key, index), (layers, inputs, self.lora.rank))
      leaves[f"{target}/a"] = noise * inputs**-0.5
      leaves[f"{target}/b"] = jnp.zeros((layers, self.lora.rank, outputs))
    return paths.unflatten(leaves)


def _means(states: Float[Array, "N T D"], texts: Array) -> Float[Array, "N P D"]:
  """The mean of each text's states; texts [N, P, T] has 1 where one stands."""
  real = texts.astype(jnp.float32)
  return jnp.einsum("npt,ntd->npd", real, states) / jnp.maximum(real.sum(-1, keepdims=True), 1)


def build(
  encoder: Any,
  head: HeadOptions,
  initial_head: Tree = None,
  *,
  train: str = "encoder",
  lora: LoraOptions | None = None,
  dtype: str = "float32",
  remat: bool = False,
) -> ReRanker:
  """A re-ranker over an encoder of `load_encoder`.

  Args:
    encoder: with config and params. head, initial_head: of `export.cross_encoder`, or a new head.
    train, lora, dtype, remat: see ReRanker.

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
  lora = lora or LoraOptions()
  if train == "lora":
    _check_lora(lora, config)
  params = {name: part for name, part in encoder.params.items() if name != "pooler"}
  config = dataclasses.replace(config, pooling="", normalise=False)
  return ReRanker(config, head, train, lora, dtype, remat, params, initial_head)


def _check_lora(lora: LoraOptions, config: EncoderConfig) -> None:
  shapes: Sequence[str] = list(paths.flatten(text_encoder.param_shapes(config)))
  known = [
    path.removeprefix("layers/").removesuffix("/kernel")
    for path in shapes
    if path.startswith("layers/") and path.endswith("/kernel")
  ]
  odd = [target for target in lora.targets if target not in known]
  if odd or not lora.targets:
    raise UserError(
      f"lora.targets names {', '.join(odd) or 'nothing'}; this encoder has {', '.join(known)}"
    )
  if lora.rank < 1:
    raise UserError(f"lora.rank is {lora.rank}; it must be at least 1")
