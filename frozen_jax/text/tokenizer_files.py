"""Tokenizers as files that transformers 4 reads as well as transformers 5."""

import json
import pathlib
from typing import Any

_CONFIG = "tokenizer_config.json"
# What transformers 5 names after its base class, and what it and earlier versions both know.
_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def save_tokenizer(tokenizer: Any, folder: pathlib.Path, **values: Any) -> None:
  """Writes a tokenizer's files to a folder.

  values: of keys of tokenizer_config.json in place of its own; None removes a key. Raises OSError.
  """
  tokenizer.save_pretrained(str(folder))
  path = folder / _CONFIG
  config = json.loads(path.read_text(encoding="utf-8")) | values
  config["tokenizer_class"] = _CLASSES.get(config["tokenizer_class"], config["tokenizer_class"])
  kept = {key: value for key, value in config.items() if value is not None or key not in values}
  path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
