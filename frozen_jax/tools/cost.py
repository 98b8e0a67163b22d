"""What a config's method trains and computes alongside its frozen LM, at any scale, without
weights.

    python -m frozen_jax.tools.cost --config=configs/id_pt.py:t0_j1 [--length=512]
      [--encoder_length=512] [--config.KEY=VALUE ...]

Parameters are those of the shapes; FLOPs are counted by XLA's cost analysis of the program before
it is optimised (`flop_count`), in float32. Of a model with a name the headers alone are read; one
that cannot be had is given by its sizes (`model.sizes`, `model.encoder_sizes`: the fields of
DecoderConfig and EncoderConfig). A training step is the loss and its gradient; the optimizer adds
some tens of FLOPs for each trained parameter.
"""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.core.flop_count import flops
from frozen_jax.core.paths import num_parameters
from frozen_jax.core.types import Tree
from frozen_jax.pipelines.experiment import RunSettings
from frozen_jax.tools.abstract_stage import AbstractStage, prompt_shapes, target_shapes
from frozen_jax.tools.arguments import Parser, add_config, parse_with_config, positive
from frozen_jax.tools.model_sizes import Models, find_models

LENGTH = 512
TARGETS = 16  # of a row in training
EXAMPLE = (
  "example:\n  python -m frozen_jax.tools.cost --config=configs/id_pt.py:t0_j1 --length=1024"
)


@dataclasses.dataclass(frozen=True)
class Text:
  """How long a text is, in tokens of the LM and of the encoder."""

  length: int
  encoder_length: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one stage's method costs.

  lm, encoder, trained: numbers of parameters. num_virtual_tokens: positions before the text. FLOPs
  over one text: alone, with_method: one pass of the LM to the next token's logits, without and with
  the method. encoding: of that the encoder's pass. longer: what the LM spends on the positions
  before the text. step: loss and gradient, one row; cached_step: with the encoder's states at hand,
  where the method lets them be cached. rule: 4 FLOPs for each parameter of the LM and token of the
  text (docs/paper.md, 6).
  """

  stage: str
  method: str
  text: Text
  lm: int
  encoder: int
  trained: int
  num_virtual_tokens: int
  alone: float
  with_method: float
  encoding: float
  longer: float
  step: float
  cached_step: float | None

  @property
  def share(self) -> float:
    """Trained parameters by those of the LM."""
    return self.trained / self.lm

  @property
  def extra(self) -> float:
    """FLOPs of inference that the method adds, by those of the LM alone."""
    return self.with_method / self.alone - 1

  @property
  def rule(self) -> float:
    """4N FLOPs a token."""
    return 4.0 * self.lm * self.text.length


def measure(run: RunSettings, text: Text) -> list[Cost]:
  """The cost of each stage of a run, over one text.

  Raises UserError for models that cannot be read and sizes that do not fit together.
  """
  models = find_models(run.model)
  return [_measured(AbstractStage.of(run, stage.name), models, text) for stage in run.stages]


def _measured(stage: AbstractStage, models: Models, text: Text) -> Cost:
  num_virtual_tokens, reads = stage.traits(models)
  if not reads:
    models = models.without_encoder()
  if text.length + num_virtual_tokens > models.lm.context:
    raise UserError(
      f"--length={text.length} and {num_virtual_tokens} positions of the method do not fit the LM's"
      f" context of {models.lm.context}; lower it"
    )
  plain = stage.without_method()
  alone = _read(plain, models, text)
  wider = dataclasses.replace(text, length=text.length + num_virtual_tokens)
  return Cost(
    stage=stage.settings.name,
    method=stage.settings.method,
    text=text,
    num_virtual_tokens=num_virtual_tokens,
    lm=num_parameters(models.shapes()["lm"]),
    encoder=num_parameters(models.shapes().get("encoder", {})),
    trained=num_parameters(stage.trained(models)),
    alone=alone,
    with_method=_read(stage, models, text),
    encoding=_encoding(models.encoder, text),
    longer=_read(plain, models, wider) - alone,
    step=_step(stage, models, text),
    cached_step=_step(stage, models, text, cached=True) if reads == "encoder_states" else None,
  )


def _encoding(config: EncoderConfig | None, text: Text) -> float:
  """FLOPs of the encoder's pass over a text; 0 without an encoder."""
  if config is None:
    return 0.0

  run = lambda params, tokens, mask: encoder.hidden(
    params, config, encoder.embed(params, config, tokens), mask
  )
  return flops(run, encoder.param_shapes(config), *[_ints(text.encoder_length)] * 2)


def _read(stage: AbstractStage, models: Models, text: Text) -> float:
  """FLOPs from a text to the logits of the next token."""

  def run(trained: Tree, frozen: Tree, prompts: Tree) -> jax.Array:
    return stage.method(models, frozen).prefill(trained, frozen, prompts, 0, 0)[0]

  return flops(run, stage.trained(models), stage.frozen(models), _prompts(models, text))


def _step(stage: AbstractStage, models: Models, text: Text, cached: bool = False) -> float:
  """FLOPs of the loss of one row and its gradient; cached: the encoder's states are given."""

  def run(trained: Tree, frozen: Tree, batch: Tree) -> Tree:
    loss = stage.method(models, frozen).loss
    return jax.value_and_grad(loss, has_aux=True)(trained, frozen, batch, None)

  batch = _prompts(models, text, cached) | target_shapes(1, TARGETS)
  return flops(run, stage.trained(models), stage.frozen(models), batch)


def _prompts(models: Models, text: Text, cached: bool = False) -> dict[str, Any]:
  return prompt_shapes(models, 1, text.length, text.encoder_length, cached)


def _ints(length: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, length), jnp.int32)


def cost_lines(cost: Cost) -> list[str]:
  """A stage's cost over several lines."""
  text = cost.text
  read = f"a text of {text.length:,} tokens"
  if cost.encoder:
    read += f" ({text.encoder_length:,} of the encoder's)"
  more = cost.with_method - cost.alone
  percent = lambda part: f"{part / cost.alone:+9.2%}"
  inside = [
    ("the encoder", cost.encoding),
    (f"{cost.num_virtual_tokens} positions more", cost.longer),
    ("its trained parts", more - cost.encoding - cost.longer),
  ]
  steps = {"loss and gradient": cost.step, "with cached states": cost.cached_step}
  return [
    f"stage {cost.stage}: {cost.method}",
    f"  frozen    LM {cost.lm:,} parameters" + f", encoder {cost.encoder:,}" * bool(cost.encoder),
    f"  trained   {cost.trained:,} parameters, {cost.share:.3%} of the LM's",
    f"  one pass over {read}, to the next token",
    f"    {'the LM alone':22} {_giga(cost.alone)}",
    f"    {'with the method':22} {_giga(cost.with_method)} {percent(more)}",
    *[f"      {name:20} {_giga(part)} {percent(part)}" for name, part in inside if cost.encoder],
    f"  one training step over it, {TARGETS} targets",
    *[
      f"    {name:22} {_giga(count)} {count / cost.rule:9.2f} of 4N a token"
      for name, count in steps.items()
      if count is not None
    ],
    f"    {'4N a token':22} {_giga(cost.rule)}",
  ]


def _giga(count: float) -> str:
  return f"{count / 1e9:14,.3f} GFLOP"


def parse(argv: Sequence[str]) -> tuple[RunSettings, Text]:
  """The arguments after the program's name -> the settings of the run, and how long a text is."""
  parser = Parser(
    prog="python -m frozen_jax.tools.cost",
    description="What a config's methods train and compute next to the frozen LM, by shapes.",
    epilog=EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add_config(parser)
  parser.add_argument(
    "--length", type=positive, default=LENGTH, help="tokens of the text (default: %(default)s)"
  )
  parser.add_argument(
    "--encoder_length",
    type=positive,
    help="tokens of it that the encoder reads (default: as many, up to data.encoder_length)",
  )
  given, run = parse_with_config(parser, argv)
  encoder_length = given.encoder_length or min(given.length, run.data.encoder_length)
  return run, Text(given.length, encoder_length)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the cost of each stage of a config; the exit status."""

  def act() -> None:
    run, text = parse(sys.argv[1:] if argv is None else argv)
    for cost in measure(run, text):
      print("\n".join(cost_lines(cost)))

  return exit_status(act)


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
  sys.exit(main())
