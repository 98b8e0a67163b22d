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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.backbones import decoder, encoder
from frozen_jax.backbones.encoder_config import EncoderConfig
from frozen_jax.config.config_file import load_config
from frozen_jax.config.overrides import override
from frozen_jax.core.errors import UserError, exit_status
from frozen_jax.core.paths import num_parameters
from frozen_jax.core.types import Tree
from frozen_jax.methods import METHODS
from frozen_jax.models.inputs import datasets_of
from frozen_jax.pipelines.experiment import RunSettings, StageSettings
from frozen_jax.run.settings import resolve_run, with_defaults
from frozen_jax.tools.flop_count import by_layers, flops
from frozen_jax.tools.inspect import Parser
from frozen_jax.tools.model_sizes import Models, encoder_of_depth, encoder_shapes, find_models

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


class _Model:
  """What a method's builder sees of a frozen model, while it is traced."""

  embedding_rms = 1.0  # a constant of the program, whatever its value
  tokenizer = None

  def __init__(self, network: Any, config: Any, params: Tree, encoder: "_Model | None" = None):
    self._network, self.config, self.params, self.encoder = network, config, params, encoder

  def embed(self, token_ids: jax.Array) -> jax.Array:
    return self._network.embed(self.params, self.config, token_ids)


def measure(run: RunSettings, text: Text) -> list[Cost]:
  """The cost of each stage of a run, over one text.

  Raises UserError for models that cannot be read and sizes that do not fit together.
  """
  models = find_models(run.model)
  return [_measured(_Stage.of(run, stage.name), models, text) for stage in run.stages]


@dataclasses.dataclass(frozen=True)
class _Stage:
  """One stage of a run: its programs, for models of any depth."""

  run: RunSettings
  settings: StageSettings

  @classmethod
  def of(cls, run: RunSettings, name: str) -> "_Stage":
    stage = run.stage(name)
    # A prompt's text decides where it starts, and needs a tokenizer.
    prompt = dataclasses.replace(stage.prompt, text="")
    sections = {k: prompt if k == "prompt" else one for k, one in stage.sections.items()}
    if prompt.per_task:
      stage = stage.with_data(datasets=datasets_of(stage.data))
    return cls(run, dataclasses.replace(stage, prompt=prompt, sections=sections))

  def without_method(self) -> "_Stage":
    """The frozen LM without a method."""
    bare = dataclasses.replace(self.settings, method="zero_shot", sections={}, frozen_inputs={})
    return _Stage(self.run, bare)

  def base(self, models: Models, frozen: Tree) -> "_Model":
    """The frozen models as the method's builder sees them."""
    network = None
    if models.encoder is not None:
      network = _Model(encoder, models.encoder, frozen["encoder"])
    return _Model(decoder, models.lm, frozen["lm"], network)

  def method(self, models: Models, frozen: Tree) -> Any:
    stage, base = self.settings, self.base(models, frozen)
    return METHODS[stage.method].build(
      base, stage.sections, remat=stage.model.remat, datasets=stage.data.datasets
    )

  def trained(self, models: Models) -> Tree:
    """The shapes of what is trained."""

    def start(frozen: Tree) -> Tree:
      return self.method(models, frozen).init(self.base(models, frozen), jax.random.key(0))

    return jax.eval_shape(start, models.shapes())

  def frozen(self, models: Models) -> Tree:
    """The shapes of all that the method takes as `frozen`."""
    frozen_inputs = {}
    for key, link in self.settings.frozen_inputs.items():
      name, _, part = link.partition("/")
      frozen_inputs[key] = _Stage.of(self.run, name).trained(models)[part]
    return models.shapes() | {"frozen_inputs": frozen_inputs}

  def traits(self, models: Models) -> tuple[int, str]:
    """Positions of the context that it takes before the text, and what it reads of an encoder."""
    traits = []

    def trace(trained: Tree, frozen: Tree) -> None:
      method = self.method(models, frozen)
      traits.append((int(method.num_virtual_tokens(trained, frozen)), method.encoder_input))

    jax.eval_shape(trace, self.trained(models), self.frozen(models))
    return traits[0]

  def read(self, models: Models, text: Text) -> float:
    """FLOPs from a text to the logits of the next token."""

    def run(trained: Tree, frozen: Tree, prompts: Tree) -> jax.Array:
      return self.method(models, frozen).prefill(trained, frozen, prompts, 0, 0)[0]

    return flops(run, self.trained(models), self.frozen(models), _prompts(models, text))

  def step(self, models: Models, text: Text, cached: bool = False) -> float:
    """FLOPs of the loss of one row and its gradient; cached: the encoder's states are given."""

    def run(trained: Tree, frozen: Tree, batch: Tree) -> Tree:
      loss = self.method(models, frozen).loss
      return jax.value_and_grad(loss, has_aux=True)(trained, frozen, batch, None)

    batch = _prompts(models, text, cached)
    batch |= {name: _ints(TARGETS) for name in ("target_positions", "target_ids", "target_mask")}
    return flops(run, self.trained(models), self.frozen(models), batch)


def _measured(stage: _Stage, models: Models, text: Text) -> Cost:
  num_virtual_tokens, reads = stage.traits(models)
  if not reads:
    models = Models(models.lm, None)
  if text.length + num_virtual_tokens > models.lm.context:
    raise UserError(
      f"--length={text.length} and {num_virtual_tokens} positions of the method do not fit the LM's"
      f" context of {models.lm.context}; lower it"
    )
  depths = [models.lm.layers] + ([models.encoder.layers] if models.encoder else [])

  def counted(program: Callable[..., float], text: Text, **how: bool) -> float:
    return by_layers(lambda *layers: program(models.of_depth(*layers), text, **how), *depths)

  plain = stage.without_method().read
  alone = counted(plain, text)
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
    with_method=counted(stage.read, text),
    encoding=_encoding(models.encoder, text),
    longer=counted(plain, wider) - alone,
    step=counted(stage.step, text),
    cached_step=counted(stage.step, text, cached=True) if reads == "encoder_states" else None,
  )


def _encoding(config: EncoderConfig | None, text: Text) -> float:
  """FLOPs of the encoder's pass over a text; 0 without an encoder."""
  if config is None:
    return 0.0

  def count(layers: int) -> float:
    shallow = encoder_of_depth(config, layers)
    run = lambda params, tokens, mask: encoder.hidden(
      params, shallow, encoder.embed(params, shallow, tokens), mask
    )
    return flops(run, encoder_shapes(shallow), *[_ints(text.encoder_length)] * 2)

  return by_layers(count, config.layers)


def _prompts(models: Models, text: Text, cached: bool = False) -> dict[str, Any]:
  prompts = {"tokens": _ints(text.length), "mask": _ints(text.length)}
  prompts["task"] = jax.ShapeDtypeStruct((1,), jnp.int32)
  if models.encoder is not None:
    prompts |= {name: _ints(text.encoder_length) for name in ("encoder_tokens", "encoder_mask")}
  if cached:
    size = prompts.pop("encoder_tokens").shape
    prompts["encoder_states"] = jax.ShapeDtypeStruct((*size, models.encoder.width), jnp.float32)
  return prompts


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
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE[:variant]",
    help="the experiment; --config.KEY=VALUE gives a key of it another value",
  )
  parser.add_argument(
    "--length", type=_count, default=LENGTH, help="tokens of the text (default: %(default)s)"
  )
  parser.add_argument(
    "--encoder_length",
    type=_count,
    help="tokens of it that the encoder reads (default: as many, up to data.encoder_length)",
  )
  keys = [argument for argument in argv if argument.startswith("--config.")]
  given = parser.parse_args([argument for argument in argv if argument not in keys])
  config = load_config(given.config)
  assignments = [key.removeprefix("--config.").partition("=") for key in keys]
  if bare := [name for name, equals, _ in assignments if not equals]:
    raise UserError(f"--config.{bare[0]} has no value; write --config.{bare[0]}=VALUE")
  config = with_defaults(config)
  override(config, [(name, value) for name, _, value in assignments])
  run = resolve_run(config)
  encoder_length = given.encoder_length or min(given.length, run.data.encoder_length)
  return run, Text(given.length, encoder_length)


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is no length; give a whole number of 1 or more")
  return int(text)


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
