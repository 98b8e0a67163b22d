"""Models and adapters of the Hugging Face hub: `hf:[owner/]name[@revision]` -> a local folder.

A name without an owner is one of the hub's oldest models, which the hub knows by it too ("gpt2").

Only safetensors, JSON and tokenizer files are fetched, into the hub's own cache. `push` goes the
other way.
"""

import contextlib
import fnmatch
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from frozen_jax.backbones import sentence_config
from frozen_jax.backbones.hf_folder import Headers
from frozen_jax.core.errors import UserError
from frozen_jax.core.progress import ProgressBar, on_terminal

PREFIX = "hf:"
_ALLOWED = [
  *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
  *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
  *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
  *("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
  # How sentence-transformers pools, and what it puts to the encoder.
  *(sentence_config.MODULES, "1_Pooling/config.json", "2_Normalize/config.json"),
  *(sentence_config.PROMPTS, sentence_config.TRANSFORMER),
]
# All other subfolders, and files that have the same weights under other names.
_IGNORED = ["[!12]*/*", "[12]_*/*.safetensors", "consolidated*.safetensors"]
# Of an adapter, ours or PEFT's.
_ADAPTER = ["adapter*.json", "adapter*.safetensors"]

_TRANSFER = "Downloading bytes"  # a bar of the client beside that of the bytes on disk


def parse_name(name: str) -> tuple[str, str | None]:
  """`hf:[owner/]name[@revision]` -> ("owner/name" or "name", revision or None).

  Raises:
    UserError: it is not of this form.
  """
  part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
  match = re.fullmatch(rf"{PREFIX}((?:{part}/)?{part})(?:@([^\s@]+))?", name)
  if not match:
    raise UserError(
      f"{name!r} is no model of the hub; write hf:owner/name or hf:owner/name@revision"
    )
  return match[1], match[2]


def wanted_files(names: Iterable[str]) -> list[str]:
  """Those files of a model's folder that are read, by their paths in it."""
  from huggingface_hub.utils import filter_repo_objects

  return list(filter_repo_objects(names, allow_patterns=_ALLOWED, ignore_patterns=_IGNORED))


def fetch(name: str, progress: bool = True, weights: bool = True) -> pathlib.Path:
  """The folder with the model's files, downloaded or found in the hub's cache.

  HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and tokens (HF_TOKEN, `hf auth login`) have their meaning in
  huggingface_hub. Where the hub cannot be reached, it returns an older copy from its cache.

  Args:
    name: `hf:[owner/]name[@revision]`.
    progress: whether downloads show progress: bars on a terminal, else a line now and then.
    weights: whether the safetensors files are downloaded too.

  Raises:
    UserError: the hub cannot be reached and the cache has no copy, or there is no such model or
      revision, or it needs an account.
  """
  ignored = _IGNORED if weights else [*_IGNORED, "*.safetensors"]
  return _snapshot(name, progress, _ALLOWED, ignored)


def fetch_adapter(name: str, progress: bool = True) -> pathlib.Path:
  """The folder with the files of an adapter, as `fetch`; UserError where there are none too."""
  folder = _snapshot(name, progress, _ADAPTER, ["*/*"])
  if not any(folder.glob(_ADAPTER[0])):
    raise UserError(f"{name} holds no adapter (adapter.json); give the name of one, or a folder")
  return folder


def _snapshot(
  name: str, progress: bool, allowed: Sequence[str], ignored: Sequence[str]
) -> pathlib.Path:
  import huggingface_hub

  repository, revision = parse_name(name)
  with _as_user_error(name), _bars(progress):
    folder = huggingface_hub.snapshot_download(
      repository,
      revision=revision,
      allow_patterns=list(allowed),
      ignore_patterns=list(ignored),
      tqdm_class=_lines(name, progress),
    )
  return pathlib.Path(folder)


def push(
  folder: pathlib.Path, repository: str, names: Sequence[str], replaced: Sequence[str] = ()
) -> str:
  """Uploads files of a folder to a model repository, as one commit; returns its address.

  A repository that is not there is made, a private one.

  Args:
    repository: "owner/name".
    names: of the files, by their paths in the folder.
    replaced: patterns of files in the repository that are removed where they are not among these.

  Raises:
    UserError: the hub cannot be reached, or refuses it.
  """
  import huggingface_hub

  api = huggingface_hub.HfApi()
  adding = [huggingface_hub.CommitOperationAdd(name, folder / name) for name in names]
  try:
    with _bars(True):
      api.create_repo(repository, private=True, exist_ok=True)
      # `upload_folder` may make several commits, between which the model would be of two exports.
      there = api.list_repo_files(repository) if replaced else []
      stale = [
        huggingface_hub.CommitOperationDelete(name)
        for name in there
        if name not in names and "/" not in name
        if any(fnmatch.fnmatch(name, pattern) for pattern in replaced)
      ]
      done = api.create_commit(
        repository, [*stale, *adding], commit_message="An export of frozen_jax"
      )
  except Exception as error:  # also those of the HTTP client, which depends on the version
    raise UserError(
      f"cannot push to {repository} on the hub: run `hf auth login` with a token that may write"
      f" there, or upload {folder} later by `hf upload` ({_reason(error)})"
    ) from None
  return str(done.commit_url)


def fetch_headers(name: str, revision: str) -> Headers:
  """The headers of a model's safetensors files, without their tensors.

  Raises:
    UserError: as `fetch`; or the model has no safetensors files.
  """
  import huggingface_hub

  with _as_user_error(name), _bars(True):
    metadata = huggingface_hub.get_safetensors_metadata(parse_name(name)[0], revision=revision)
  return {
    file: {tensor: (info.dtype, tuple(info.shape)) for tensor, info in header.tensors.items()}
    for file, header in sorted(metadata.files_metadata.items())
  }


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
  """Lets the client draw its own bars on a terminal only, and only if there is to be progress."""
  from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
  )

  hidden = not (progress and on_terminal()) and not are_progress_bars_disabled()
  if hidden:
    disable_progress_bars()
  try:
    yield
  finally:
    if hidden:
      enable_progress_bars()


def _lines(name: str, progress: bool) -> type[ProgressBar] | None:
  """What the client shows where there is no terminal: the bytes, in a line now and then.

  None: its own bars, which are drawn on a terminal or hidden. HF_HUB_DISABLE_PROGRESS_BARS hides
  the lines too.
  """
  from huggingface_hub import constants

  if not progress or on_terminal() or constants.HF_HUB_DISABLE_PROGRESS_BARS:
    return None

  class Lines(ProgressBar):
    """Of the client's bars that which counts the bytes on disk."""

    def __init__(self, *args: Any, **options: Any):
      others = options.get("unit") != "B" or options.get("desc") == _TRANSFER
      options.pop("name", None)  # older clients group their bars by it
      self._said_at = time.monotonic()
      super().__init__(*args, **options | {"desc": f"fetch {name}", "disable": others})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
      """The client asks for it at each file; a line now and then is enough."""
      now = time.monotonic()
      if now - self._said_at >= self.mininterval:
        self._said_at = now
        super().display(msg, pos)

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
      """The line keeps its own name."""

    set_description_str = set_description

  return Lines


@contextlib.contextmanager
def _as_user_error(name: str) -> Iterator[None]:
  """Turns the client's exceptions into UserErrors."""
  try:
    yield
  except Exception as error:  # also those of the HTTP client, which depends on the version
    raise UserError(
      f"cannot get {name} from the hub: {_hint(error)}, or give a local folder instead "
      f"({_reason(error)})"
    ) from None


def _reason(error: Exception) -> str:
  return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _hint(error: Exception) -> str:
  from huggingface_hub import constants, errors

  if isinstance(error, errors.GatedRepoError):
    return "it needs a licence to be accepted: do so on the model's page, then `hf auth login`"
  if isinstance(error, errors.RevisionNotFoundError):
    return "there is no such revision; check the text after the @"
  if isinstance(error, errors.RepositoryNotFoundError):
    return "there is no such model; check the name, or `hf auth login` if it is a private one"
  if constants.HF_HUB_OFFLINE:
    cache = constants.HF_HUB_CACHE
    return f"HF_HUB_OFFLINE is set and {cache} has no copy; unset it where there is a network"
  return "check the name and connect this machine to the hub"
