"""What the JSON file of an export says of a tuned model, whatever the format."""

from typing import Any

from frozen_jax.config.section import section_values
from frozen_jax.core import paths
from frozen_jax.core.types import Tree
from frozen_jax.models.generation import end_ids
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.text.templates import make_template


def about_model(model: TunedModel) -> dict[str, Any]:
  """Method and settings, model and fingerprint, how the text must look and where an answer ends.

  template: a text with {question} in it; chat: whether it is then the user's message in the
  tokenizer's chat template. end_ids: the tokens that end an answer.
  """
  template = make_template(model.inputs.template)
  return {
    "method": model.method.name,
    "sections": {name: section_values(one) for name, one in model.sections.items()},
    "model": model.lm.name,
    "frozen_fingerprint": model.lm.fingerprint,
    "template": template.prompt,
    "chat": template.chat,
    "max_new_tokens": model.generation.max_new_tokens,
    "end_ids": list(end_ids(model)),
    "num_virtual_tokens": model.num_virtual_tokens,
  }


def layout(tree: Tree) -> dict[str, dict[str, Any]]:
  """{path: {"shape", "dtype"}} of the leaves of a tree."""
  return {
    path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    for path, leaf in paths.flatten(tree).items()
  }


def adapter_tree(model: TunedModel) -> Tree:
  """{"trained": ..., "frozen_inputs"?: ...}: the small trees, as `adapter.safetensors` has them."""
  parts = {"trained": model.trained, "frozen_inputs": model.frozen_inputs}
  return {name: tree for name, tree in parts.items() if tree}
