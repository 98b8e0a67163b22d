"""Models of the hub, with a server of our own in its place and its real client."""

import re

import numpy as np
import pytest

from frozen_jax.backbones.hub import parse_name
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.errors import UserError
from tests import hub_server
from tests.backbones.decoder_cases import torch_model

pytestmark = pytest.mark.program

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 11))
LOAD = """
import sys
from frozen_jax.backbones.load import load_decoder
from frozen_jax.core.errors import exit_status
sys.exit(exit_status(lambda: print(load_decoder(sys.argv[1], progress=False).fingerprint)))
"""

WATCH = """
import logging, os, sys
from frozen_jax.backbones import hub
from frozen_jax.core import progress
logging.basicConfig(level=logging.INFO, format="LOG %(message)s", force=True)
logging.getLogger("httpx").setLevel(logging.WARNING)
progress.LINE_EVERY = float(sys.argv[1])
folder = hub.fetch("hf:owner/name", progress=sys.argv[2] == "shown")
if len(sys.argv) > 3:
  print(hub.fetch_headers("hf:owner/name", folder.name))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  torch_model("llama").save_pretrained(folder, max_shard_size="20KB")
  (folder / "pytorch_model.bin").write_bytes(b"a pickle")
  return folder


@pytest.fixture
def hub(tmp_path, model):
  """`hub(*arguments, **variables)` runs Python against the server; `hub.asked` of it."""
  with hub_server.serving(model, tmp_path / "home") as run:
    yield run


def test_fetched_with_a_token_and_found_again_offline(hub, model):
  status, out, err = hub("-c", LOAD, "hf:owner/name@v1", anew=True, HF_TOKEN="hf_secret")
  assert (status, out.strip()) == (0, load_decoder(str(model), progress=False).fingerprint), err
  models = [entry for entry in hub.asked if "owner/name" in entry[1]]
  assert {token for _, _, token, _ in models} == {"Bearer hf_secret"}
  assert not [path for _, path, _, _ in models if path.endswith(".bin")]
  hub.asked.clear()
  assert hub("-c", LOAD, "hf:owner/name@v1", HF_HUB_OFFLINE="1")[:2] == (0, out)
  assert hub.asked == []
  assert hub("-c", LOAD, "hf:owner/name@v1", HF_ENDPOINT="http://127.0.0.1:9")[:2] == (0, out)


@pytest.mark.parametrize(
  "name, environment, said",
  [
    ("owner/name", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and .*home/hub has no copy"),
    ("owner/name", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "connect this machine to the hub"),
    (
      "owner/gated",
      {},
      "it needs a licence to be accepted: do so on the model's page, then `hf auth login`",
    ),
    ("owner/none", {}, "there is no such model; check the name, or `hf auth login`"),
    ("owner/name@v9", {}, "there is no such revision"),
  ],
)
def test_a_model_that_cannot_be_had(hub, name, environment, said):
  status, out, err = hub("-c", LOAD, f"hf:{name}", **environment)
  assert status == 2 and out == "", err
  (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
  assert re.match(rf"error: cannot get hf:{name} from the hub: .*{said}", line), line
  assert "local folder" in line


def test_inspect_fetches_the_headers_alone(hub, model):
  command = ("-m", "frozen_jax.tools.inspect")
  status, out, err = hub(*command, "hf:owner/name", "--mesh=tensor=2")
  assert status == 0, err
  files = [ask for ask in hub.asked if ask[0] == "GET" and ask[1].endswith(".safetensors")]
  assert len(files) > 2 and all(part.startswith("bytes=0-") for *_, part in files)
  assert hub(*command, str(model), "--mesh=tensor=2") == (0, out, "")
  status, again, err = hub(*command, "hf:owner/name", "--mesh=tensor=2", HF_HUB_OFFLINE="1")
  assert status == 2 and "error: cannot get hf:owner/name from the hub" in err
  assert hub("-c", LOAD, "hf:owner/name")[0] == 0  # what inspect left in the cache is no hindrance
  assert hub(*command, "hf:owner/name", "--mesh=tensor=2", HF_HUB_OFFLINE="1")[:2] == (0, out)


def test_a_model_of_the_hub(llama, folder, torch_logits, our_logits, monkeypatch):
  """The hub's client is replaced: what is asked of it, and that its folder is what is loaded."""
  import huggingface_hub

  model, asked = llama(), []
  path = folder(model)

  def snapshot_download(repository, *, revision, allow_patterns, ignore_patterns, tqdm_class):
    asked.append((repository, revision))
    kept = huggingface_hub.utils.filter_repo_objects(
      ["config.json", "model-1.safetensors", "model.bin", "run.py", "onnx/model.safetensors"],
      allow_patterns=allow_patterns,
      ignore_patterns=ignore_patterns,
    )
    assert list(kept) == ["config.json", "model-1.safetensors"]
    return str(path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  loaded = load_decoder("hf:owner/name@v1.0", progress=False)
  load_decoder("hf:owner/name", progress=False)
  assert asked == [("owner/name", "v1.0"), ("owner/name", None)]
  assert loaded.name == "hf:owner/name@v1.0"
  np.testing.assert_allclose(our_logits(loaded, TOKENS), torch_logits(model, TOKENS), atol=2e-5)


def logged(err):
  """The lines of our log among what stands on standard error; nothing is drawn there."""
  assert "\r" not in err and "%|" not in err and "it/s" not in err, err
  return [line.removeprefix("LOG ") for line in err.splitlines() if line.startswith("LOG fetch")]


@pytest.mark.parametrize("every, count", [(0, 1), (30, 0)])
def test_without_a_terminal_a_download_gives_lines_now_and_then(hub, model, every, count):
  status, _, err = hub("-c", WATCH, str(every), "shown")
  lines = logged(err)
  assert status == 0 and (len(lines) >= count if count else not lines), err
  for line in lines:
    assert re.match(r"fetch hf:owner/name: [\d.]+k?M?( of [\d.]+k?M?)?B", line), line


@pytest.mark.parametrize(
  "progress, headers, variables",
  [
    ("hidden", (), {}),
    ("shown", (), {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
    ("hidden", ("headers",), {}),
  ],
)
def test_hidden_progress_says_nothing(hub, progress, headers, variables):
  status, _, err = hub("-c", WATCH, "0", progress, *headers, **variables)
  assert status == 0 and logged(err) == []


@pytest.mark.parametrize(
  "name, parsed",
  [
    ("hf:owner/name", ("owner/name", None)),
    ("hf:gpt2", ("gpt2", None)),  # the hub's oldest models have no owner
    ("hf:bert-base-uncased@main", ("bert-base-uncased", "main")),
  ],
)
def test_names(name, parsed):
  assert parse_name(name) == parsed


@pytest.mark.parametrize(
  "name", ["hf:", "hf:a/b/c", "hf:/b", "hf:a/", "hf:a b", "hf:a@", "hf:../a"]
)
def test_names_of_no_model(name):
  with pytest.raises(UserError, match="is no model of the hub"):
    parse_name(name)
