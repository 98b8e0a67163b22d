"""A trained adapter on its frozen LM: reading it from a workdir or an export, and using it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from frozen_jax.core.errors import UserError
from frozen_jax.core.types import Method, Prompt, Tree
from frozen_jax.data.examples import Example
from frozen_jax.decoding.requests import Sampling
from frozen_jax.evaluation.generation import check_texts, generate_texts
from frozen_jax.export.adapter_folder import DESCRIPTION, read_adapter, write_adapter
from frozen_jax.methods import METHODS
from frozen_jax.run.frozen_lm import FrozenLM, with_encoder
from frozen_jax.run.stages import System, question_task
from frozen_jax.run.two_pass import for_last_pass, replies

FOLDER = "adapter"  # within a workdir


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
  """A method with its trained numbers, on the frozen LM that it was trained on.

  trained: the tree the last stage trained; fixed: small trees that it used and did not train (the
  tuned prompt of a recursion's first pass); options: the experiment's, as resolved.
  """

  lm: FrozenLM
  method: Method
  trained: Tree
  fixed: Tree
  options: Mapping[str, Any]

  @property
  def frozen(self) -> Tree:
    """What the method's functions take as `frozen`."""
    return self.lm.frozen(self.fixed)

  @property
  def system(self) -> System:
    """The method with its trees, apart from the LM."""
    return System(self.method, self.trained, self.fixed, dict(self.options))

  def generate(
    self,
    texts: Sequence[str],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    num_samples: int = 1,
    seed: int = 0,
  ) -> list[str] | list[list[str]]:
    """Answers questions, each put into the template that the adapter was trained with.

    Greedy at temperature 0, and then by as many passes as its gate, where it has one, asks for;
    samples are all of the last pass. Returns a list of str, or with `num_samples` above 1 a list of
    lists. Raises UserError for a question longer than the model's context.
    """
    check_texts(texts, self.lm)
    sampling = Sampling(max_new_tokens, temperature, num_samples, seed)
    rows = self.options["evaluate"]["batch_size"]
    task = question_task(self.options, self.lm, self.method)

    def encode(questions: Sequence[str]) -> list[Prompt]:
      return [task.prompt(one) for one in for_last_pass(self.system, self.lm, _asked(questions))]

    if self.options.get("gate") and not temperature and num_samples == 1:
      greedy = {"max_new_tokens": max_new_tokens, "num_beams": 1}
      new = {"evaluate": self.options["evaluate"] | greedy}
      system = dataclasses.replace(self.system, options=dict(self.options) | new)
      return [reply.text for reply in replies(system, self.lm, _asked(texts))]
    found = generate_texts(
      self.method, self.trained, self.frozen, self.lm, texts, encode, sampling, rows
    )
    if num_samples == 1:
      return [text.strip() for text in found]
    return [[text.strip() for text in samples] for samples in found]

  def save(self, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes `adapter.json` and `adapter.safetensors`, which `load_adapter` reads."""
    beside = self.lm.encoder if self.method.encoder_input else None
    info = {
      "method": self.options["method"],
      "model": self.lm.name,
      "frozen_fingerprint": self.lm.fingerprint,
      "encoder_fingerprint": getattr(beside, "fingerprint", ""),
      "options": dict(self.options),
    }
    return write_adapter(folder, {"trained": self.trained, "fixed": self.fixed}, info)


def _asked(questions: Sequence[str]) -> list[Example]:
  return [{"id": str(n), "question": one} for n, one in enumerate(questions, start=1)]


def load_adapter(path: str | pathlib.Path, lm: FrozenLM) -> Adapter:
  """Reads a workdir whose run is complete, or an exported adapter, onto its frozen LM.

  Raises UserError where there is none, where it is damaged, or for another frozen LM.
  """
  tree, info = read_stored(path)
  if info["frozen_fingerprint"] != lm.fingerprint:
    raise UserError(
      f"the adapter in {path} belongs to another base model ({info['model']}, fingerprint"
      f" {info['frozen_fingerprint'][:12]}); this one is {lm.name} ({lm.fingerprint[:12]}): load"
      " the model it was trained on"
    )
  tree = jax.tree.map(jnp.asarray, tree)
  options, beside = info["options"], info.get("encoder_fingerprint", "")
  if beside:
    lm = with_encoder(lm, options["model"])
    found = lm.encoder
    if found is None or found.fingerprint != beside:
      this = "there is none here" if found is None else f"this one is {found.name}"
      raise UserError(
        f"the adapter in {path} was trained beside another text encoder"
        f" ({options['model']['encoder']}, fingerprint {beside[:12]}); {this}: give the one it was"
        " trained with"
      )
  method = METHODS[options["method"]](lm, options)
  return Adapter(lm, method, tree.get("trained", {}), tree.get("fixed", {}), options)


def read_stored(path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The stored tree and description of a workdir or an exported folder; UserError without one."""
  path = pathlib.Path(path)
  for folder in (path / FOLDER, path):
    if (folder / DESCRIPTION).exists():
      return read_adapter(folder)
  if not path.exists():
    raise UserError(f"no such folder: {path}; give a workdir or an exported adapter")
  raise UserError(f"no adapter in {path}; let the training run there come to its end first")
