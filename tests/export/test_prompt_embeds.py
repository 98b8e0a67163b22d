"""Exported embeddings, put into other tools, continue as the tuned model answers."""

import base64
import http.server
import io
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from frozen_jax.core.errors import UserError
from frozen_jax.export.manifest import read_manifest
from frozen_jax.export.prompt_embeds import check_prompt_embeds, write_prompt_embeds
from frozen_jax.export.torch_file import torch_bytes
from tests.export.conftest import QUESTIONS, on_the_page, tuned
from tests.processes import HANGS_AFTER

LINES, CLIENT = on_the_page("inputs_embeds="), on_the_page("/v1/completions")
IDS = ("first", "2", "a/b é")


@pytest.fixture(scope="module")
def base(folder):
  torch.set_num_threads(1)
  return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def exported(model, folder, ids=IDS):
  folder.mkdir()
  task = model.question_task
  prompts = [task.prompt({"id": "", "question": question}) for question in QUESTIONS]
  write_prompt_embeds(folder, model, ids, prompts)
  return folder


def in_transformers(base, embeds, max_new_tokens=6):
  """The greedy text after input embeddings [P + T, D]."""
  x = torch.as_tensor(embeds)[None]
  mask = torch.ones(x.shape[:2], dtype=torch.long)
  how = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0}
  with torch.no_grad():
    return base.generate(inputs_embeds=x, attention_mask=mask, **how)[0].tolist()


@pytest.mark.parametrize(
  "name, inputs",
  [
    ("zero_shot", {}),
    ("prompt_tuning", {}),
    ("prompt_tuning", {"datasets": ("one", "two")}),
    ("p_tuning", {}),
    ("id_pt", {"encoder_length": 20, "template": "Q: {question} A:"}),
  ],
)
def test_transformers_continues_as_the_model_answers(lm_with_encoder, base, tmp_path, name, inputs):
  prompt = {"prompt": {"per_task": True}} if "datasets" in inputs else {}
  model = tuned(lm_with_encoder, name, inputs, **prompt)
  folder = exported(model, tmp_path / "my_embeds")
  with safe_open(folder / "prompt_embeds.safetensors", framework="np") as rows:
    assert sorted(rows.keys()) == sorted(IDS)
    assert rows.metadata()["method"] == name and "{question}" in rows.metadata()["template"]
    tensors = [rows.get_tensor(one) for one in IDS]
  decode = lambda ids: model.lm.tokenizer.decode(ids, skip_special_tokens=True).strip()
  assert [decode(in_transformers(base, one)) for one in tensors] == model.generate(
    QUESTIONS, max_new_tokens=6
  )
  lengths = [len(model.lm.tokenizer(make_text(model, one))["input_ids"]) for one in QUESTIONS]
  virtual = model.num_virtual_tokens
  assert [len(one) for one in tensors] == [length + virtual for length in lengths]


def make_text(model, question):
  template = model.inputs.template
  text = "Question: {question}\nAnswer:" if template == "plain" else template
  return text.format(question=question)


def test_the_lines_of_the_page_run(lm, base, folder, tmp_path, monkeypatch, capsys):
  model = tuned(lm, "prompt_tuning")
  exported(model, tmp_path / "my_embeds")
  monkeypatch.chdir(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  exec(LINES, {"model": base, "tokenizer": tokenizer})
  said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
  assert set(said) == set(IDS)


class _Server(http.server.BaseHTTPRequestHandler):
  """What vLLM does with a request: reads the tensor without pickled code, and continues it."""

  def do_POST(self):
    request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    data = base64.b64decode(request["prompt_embeds"], validate=True)
    tensor = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    assert self.path == "/v1/completions" and tensor.dtype == torch.float32 and tensor.dim() == 2
    ids = in_transformers(self.server.base, tensor, request["max_tokens"])
    ends = [at for at, one in enumerate(ids) if one in request["stop_token_ids"]]
    text = self.server.decode(ids[: ends[0] if ends else None])
    reply = json.dumps({"choices": [{"text": text}]}).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(reply)))
    self.end_headers()
    self.wfile.write(reply)

  def log_message(self, *_):
    pass


def test_the_client_of_the_page_gets_the_models_answers(lm, base, tmp_path):
  model = tuned(lm, "prompt_tuning")
  folder = exported(model, tmp_path / "my_embeds")
  (tmp_path / "client.py").write_text(CLIENT)
  with http.server.HTTPServer(("127.0.0.1", 0), _Server) as server:
    server.base = base
    server.decode = lambda ids: lm.tokenizer.decode(ids, skip_special_tokens=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, str(tmp_path / "client.py"), str(folder), address, "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER)
    server.shutdown()
  assert done.returncode == 0, done.stderr
  said = [json.loads(line) for line in done.stdout.splitlines()]
  assert [one["id"] for one in said] == list(IDS)
  assert [one["prediction"] for one in said] == model.generate(QUESTIONS, max_new_tokens=6)
  assert len(CLIENT.splitlines()) <= 30


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (70, 33), (0, 4)])
def test_the_bytes_are_those_of_a_tensor(shape):
  array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  tensor = torch.load(io.BytesIO(torch_bytes(array)), weights_only=True)
  assert torch.equal(tensor, torch.as_tensor(array)) and tensor.is_contiguous()
  assert torch_bytes(array) == torch_bytes(array.copy())


@pytest.mark.parametrize(
  "name",
  ["neural_recursion", "textual_recursion", "prefix_tuning", "lora", "adapters", "fine_tuning"]
  + ["recirculation", "looped"],
)
def test_a_method_that_needs_more_is_refused_with_what_would_do(name):
  with pytest.raises(UserError, match=f"{name} does more than.*format=stablehlo.*adapter"):
    check_prompt_embeds({"method": name}, {"x": {}})


def test_a_prompt_within_the_stack_is_refused(lm, tmp_path):
  with pytest.raises(UserError, match="within the stack.*format=stablehlo.*adapter"):
    exported(tuned(lm, "prompt_tuning", prompt={"layer": "1"}), tmp_path / "x")


@pytest.mark.parametrize(
  "ids, said",
  [
    (("a", "b", "a"), "'a' is used twice"),
    (("a", "__metadata__", "b"), "'__metadata__' cannot name"),
    (("a", "", "b"), "'' cannot name"),
    (("a", "b\x00", "c"), "cannot name"),
  ],
)
def test_ids_that_name_no_tensor_are_refused(lm, tmp_path, ids, said):
  with pytest.raises(UserError, match=said):
    exported(tuned(lm, "prompt_tuning"), tmp_path / "x", ids)
  assert list((tmp_path / "x").iterdir()) == []


def test_what_was_altered_is_refused(lm, tmp_path):
  folder = exported(tuned(lm, "prompt_tuning"), tmp_path / "my_embeds")
  assert read_manifest(folder, "prompt_embeds")["width"] == lm.config.width
  path = folder / "prompt_embeds.jsonl"
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="truncated or altered"):
    read_manifest(folder, "prompt_embeds")
