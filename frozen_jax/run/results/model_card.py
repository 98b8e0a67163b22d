"""README.md of an export: a model card, whose metadata the Hugging Face hub reads."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from frozen_jax.backbones.gguf_file import GGUFFile
from frozen_jax.backbones.load import open_model, resolve_model_path
from frozen_jax.config.section import section_values
from frozen_jax.core.paths import num_parameters
from frozen_jax.core.version import __version__
from frozen_jax.export.peft import base_model
from frozen_jax.models.tuned_model import TunedModel
from frozen_jax.run.results.records import Record, table_rows
from frozen_jax.run.results.report import explained, metrics_table
from frozen_jax.text.templates import make_template

# Format -> how its folder relates to the base, as the hub calls it, and what loads it.
CARDS = {"adapter": ("adapter", "frozen_jax"), "merged": ("finetune", "transformers")}
CARDS |= {"gguf_lora": ("adapter", "gguf")}
_TRAINED_ON = ("train", "validation")


def model_card(
  form: str, model: TunedModel, data: Mapping[str, Any], record: Record, in_peft: bool
) -> str:
  """The text of the card.

  Args:
    form: of the export, one of CARDS.
    data: the values of the section of the last stage.
    record: what results.json of the run holds; {} where there is none.
    in_peft: whether the export can be written for PEFT too.
  """
  base, path = base_model(model.lm.name), resolve_model_path(model.lm.name, False)
  relation, library = CARDS[form]
  parts = [
    _metadata(base.name if base.of_hub else None, relation, library, _license(path), data, model),
    f"# {model.method.name} on {base.name}",
    "\n".join(
      [
        f"- base: `{model.lm.name}`"
        + (f", on the hub `{base.name}`" if base.of_hub else "")
        + (f", revision `{base.revision}`" if base.revision else ""),
        f"- fingerprint of its weights: `{model.lm.fingerprint}`",
        f"- method: `{model.method.name}`, {num_parameters(model.trained):,} trained numbers",
        *([f"- text encoder: `{model.lm.encoder.name}`"] if model.method.encoder_input else []),
      ]
    ),
    "## How the text must look",
    _template(model.inputs.template),
    "## How to load it",
    _loading(form, model, in_peft),
    "## How it was trained",
    "\n".join(f"- data.{split}: `{data[split]}`" for split in (*_TRAINED_ON, "test")),
    _code(json.dumps({name: section_values(own) for name, own in model.sections.items()})),
    *_made(record),
    *_scores(record),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(
  base: str | None,
  relation: str,
  library: str,
  license_id: str | None,
  data: Mapping[str, Any],
  model: TunedModel,
) -> str:
  from huggingface_hub import ModelCardData

  specs = [one.strip() for split in _TRAINED_ON for one in str(data[split]).split(",")]
  of_hub = (one.removeprefix("hf:").rpartition("/")[0] for one in specs if one.startswith("hf:"))
  names = dict.fromkeys(one.partition(":")[0] for one in of_hub)
  values = ModelCardData(
    base_model=base,
    base_model_relation=relation if base else None,
    library_name=library,
    license=license_id,
    datasets=list(names) or None,
    pipeline_tag="text-generation",
    tags=["frozen_jax", model.method.name],
  )
  return f"---\n{values.to_yaml()}\n---"


def _license(path: pathlib.Path) -> str | None:
  """The licence that the base's own files state; None where they state none."""
  if path.is_file():
    stored = open_model(path)
    return stored.value("general.license") if isinstance(stored, GGUFFile) else None
  if not (path / "README.md").is_file():
    return None
  from huggingface_hub import ModelCard

  try:
    return ModelCard.load(path / "README.md", ignore_metadata_errors=True).data.license
  except Exception:  # a card may hold anything
    return None


def _template(name: str) -> str:
  template = make_template(name)
  if template.chat:
    return "A question is the user's message in the tokenizer's chat template."
  return f"A question is put into this text, and the answer follows it:\n\n{_code(template.prompt)}"


def _loading(form: str, model: TunedModel, in_peft: bool) -> str:
  if form == "merged":
    return _code(
      "import transformers",
      'model = transformers.AutoModelForCausalLM.from_pretrained("THIS FOLDER")',
      'tokenizer = transformers.AutoTokenizer.from_pretrained("THIS FOLDER")',
    )
  if form == "gguf_lora":
    return (
      "In llama.cpp, on a GGUF file of the base (another quantisation of it gives other figures):"
      "\n\n" + _code('llama-completion -m BASE.gguf --lora adapter.gguf --temp 0 -no-cnv -p "..."')
    )
  code = _code(
    "from frozen_jax import load_adapter, load_frozen",
    f"lm = load_frozen({model.lm.name!r})",
    'adapter = load_adapter("THIS FOLDER", lm)                # or "hf:owner/name"',
    'adapter.generate(["..."])',
  )
  if not in_peft:
    return code
  return f"{code}\n\n`--mode=export --config.export.format=peft` writes it for PEFT."


def _made(record: Record) -> list[str]:
  """By what the run was made: command, versions, device, date."""
  ours = f"frozen_jax {record.get('version', __version__)} {record.get('commit', '')}".strip()
  keys = ("seed", "steps", "device", "created")
  facts = [f"- {key}: {record[key]}" for key in keys if key in record]
  lines = "\n".join([*facts, f"- exported by jax {jax.__version__}, {ours}"])
  return [*([_code(record["command"])] if record.get("command") else []), lines]


def _scores(record: Record) -> list[str]:
  if "table" not in record:
    return []
  rows = table_rows(record)
  table = "\n".join([metrics_table(rows), "", *explained(rows)])
  return ["## Scores", f"On `{record.get('test', '')}`:", _code(table)]


def _code(*lines: str) -> str:
  """Lines as an indented block of Markdown."""
  text = "\n".join(lines)
  return "\n".join(f"    {line}".rstrip() for line in text.split("\n"))
