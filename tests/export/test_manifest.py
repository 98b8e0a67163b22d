"""What an export lists is what is there: anything else is one line of a UserError."""

import hashlib
import json
import random
import shutil
import struct

import numpy as np
import pytest
import safetensors.numpy

from frozen_jax.core.errors import UserError
from frozen_jax.export.manifest import read_manifest, write_manifest

ALTERATIONS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  tensors = {"trained/x": np.arange(6.0, dtype=np.float32), "trained/y": np.ones((2, 3), np.int32)}
  safetensors.numpy.save_file(tensors, folder / "trained.safetensors")
  (folder / "step.bin").write_bytes(bytes(range(200)))
  (folder / "tokenizer").mkdir()
  (folder / "tokenizer" / "tokenizer.json").write_text('{"a": 1}')
  write_manifest(folder, "stablehlo", {"method": "lora", "end_ids": [0]})
  return folder


@pytest.fixture
def copy(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / "copy")


def refused(folder, name="stablehlo"):
  """The one line that says why."""
  with pytest.raises(UserError) as caught:
    read_manifest(folder, name)
  (line,) = str(caught.value).splitlines()
  return line


def listed(folder, **changes):
  """Writes the folder's JSON file with these changes."""
  path = folder / "stablehlo.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_export_is_read(whole):
  about = read_manifest(whole, "stablehlo")
  assert about["method"] == "lora" and about["end_ids"] == [0]
  assert list(about["files"]) == ["step.bin", "tokenizer/tokenizer.json", "trained.safetensors"]


def altered(file, random_numbers):
  """Cuts a file, changes one of its bytes, makes it longer, or removes it."""
  data, kind = bytearray(file.read_bytes()), random_numbers.randrange(4)
  at = random_numbers.randrange(len(data))
  if kind == 0:
    data = data[:at]
  elif kind == 1:
    data[at] ^= 1 << random_numbers.randrange(8)
  elif kind == 2:
    data[at:at] = random_numbers.randbytes(3)
  else:
    file.unlink()
    return
  file.write_bytes(data)


@pytest.mark.parametrize("seed", range(ALTERATIONS))
def test_an_altered_file_is_refused(copy, seed):
  numbers = random.Random(seed)
  files = sorted(one for one in copy.rglob("*") if one.is_file() and one.suffix != ".json")
  altered(numbers.choice(files), numbers)
  said = refused(copy)
  assert "truncated or altered" in said or "is missing" in said


@pytest.mark.parametrize("seed", range(20))
def test_a_truncated_description_is_refused(copy, seed):
  path = copy / "stablehlo.json"
  data = path.read_bytes()
  path.write_bytes(data[: random.Random(seed).randrange(len(data) - 2)])
  assert "is not JSON" in refused(copy)


@pytest.mark.parametrize(
  "name",
  [
    "../secret",
    "/etc/hostname",
    "tokenizer/../../x",
    "a\\b",
    "C:x",
    "",
    ".",
    "a//b",
    "x\n",
    "link",
  ],
)
def test_a_name_that_leads_out_is_refused_before_anything_is_read(copy, name):
  (copy / "link").symlink_to(copy.parent)
  listed(copy, files={name: {"bytes": 1, "sha256": "0" * 64}})
  said = refused(copy)
  assert "no file within it" in said or "is missing" in said


@pytest.mark.parametrize(
  "files",
  [None, [], {"step.bin": 3}, {"step.bin": {"bytes": "3", "sha256": "0" * 64}}]
  + [{"step.bin": {"bytes": 200, "sha256": wrong}} for wrong in ("", "z" * 64, 7)],
)
def test_a_list_of_another_form_is_refused(copy, files):
  listed(copy, files=files)
  assert "does not list its files" in refused(copy)


def test_another_format_or_version_is_refused(copy):
  assert "there is no" in refused(copy, "orbax")
  listed(copy, format_version=2)
  assert "version '2'" in refused(copy)
  (copy / "stablehlo.json").write_text("[]")
  assert "no JSON object" in refused(copy)


@pytest.mark.parametrize(
  "header",
  [
    struct.pack("<Q", 2**62) + b"{}",
    struct.pack("<Q", 60) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,1]}}      ',
    struct.pack("<Q", 80)
    + b'{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'.ljust(80)
    + b"0000",
  ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(copy, header):
  """Even where the list was altered with it."""
  (copy / "trained.safetensors").write_bytes(header)
  entry = {"bytes": len(header), "sha256": hashlib.sha256(header).hexdigest()}
  listed(copy, files={"trained.safetensors": entry})
  assert "is no safetensors file" in refused(copy)
