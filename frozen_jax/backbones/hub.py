"""Models of the Hugging Face hub: `hf:owner/name[@revision]` -> a local folder.

Only safetensors, JSON and tokenizer files are fetched, into the hub's own cache.
"""

import pathlib
import re

from frozen_jax.core.errors import UserError

PREFIX = "hf:"
_WANTED = [
  *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
  *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
  *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
  *("modules.json", "1_Pooling/config.json"),  # how sentence-transformers pools
]
# Subfolders but for that one; the same weights by other names.
_UNWANTED = ["[!1]*/*", "1_*/*.safetensors", "consolidated*.safetensors"]


def parse(name: str) -> tuple[str, str | None]:
  """`hf:owner/name[@revision]` -> ("owner/name", revision or None).

  Raises:
    UserError: it is not written like this.
  """
  part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
  match = re.fullmatch(rf"{PREFIX}({part}/{part})(?:@([^\s@]+))?", name)
  if not match:
    raise UserError(
      f"{name!r} is no model of the hub; write hf:owner/name or hf:owner/name@revision"
    )
  return match[1], match[2]


def fetch(name: str, progress: bool = True) -> pathlib.Path:
  """The folder with the model's files, downloaded or found in the hub's cache.

  Raises:
    UserError: the hub cannot be reached and the cache has no copy, or there is no such model or
      revision, or it needs an account.
  """
  import huggingface_hub
  from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

  repository, revision = parse(name)
  (enable_progress_bars if progress else disable_progress_bars)()
  try:
    folder = huggingface_hub.snapshot_download(
      repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
    )
  except Exception as error:  # its own, and those of whichever HTTP client its version uses
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(
      f"cannot get {name} from the hub ({reason[:200]}); check the name, connect this machine to "
      "the hub (`hf auth login` for a model behind a licence), or give a local folder instead"
    ) from None
  return pathlib.Path(folder)
