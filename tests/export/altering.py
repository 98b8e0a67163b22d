"""Ways to alter, cut and misname what an export wrote, so that nothing may be read of it.

A way is a function of the folder and `random.Random`. None leaves what would be read the same: a
byte is changed where every value counts (in JSON to what is no UTF-8, in the header of an array
file), or where a digest covers it.
"""

import hashlib
import json
import struct

import numpy as np
import safetensors.numpy

NAMES = ("../x", "/etc/x", "a//b", "a/../b", "..", "a\\b", "C:x", "x\n", "", " ", "n" * 5000, "\0")
HUGE = (2**62, 2**63 + 5, 2**32, 100_000_001, 10**6)
TEXTS = ("[]", "null", "7", '"x"', "{}", "", "NaN", '{"a":1', "[" * 100_000, '{"a":' * 9999)
TEXTS += ("9" * 9999, "\ufeff{}", "{'a': 1}")


def cut(path, random):
  """At a random place, not only white space at the end."""
  data = path.read_bytes()
  path.write_bytes(data[: random.randrange(len(data) - 2)])


def lengthened(path, random):
  path.write_bytes(path.read_bytes() + b"\0" + random.randbytes(random.randrange(9)))


def no_utf8(path, random):
  """A byte of JSON, or of the header of an array file."""
  data = bytearray(path.read_bytes())
  start, end = 0, len(data)
  if path.suffix == ".safetensors":
    start, end = 8, 8 + int.from_bytes(data[:8], "little")
  data[random.randrange(start, end)] |= 0x80
  path.write_bytes(data)


def one_bit(path, random, end=None):
  data = bytearray(path.read_bytes())
  data[random.randrange(end or len(data))] ^= 1 << random.randrange(8)
  path.write_bytes(data)


def length_field(path, random):
  """A bit of the number of bytes that a header of safetensors has."""
  one_bit(path, random, end=8)


def huge_header(path, random):
  path.write_bytes(struct.pack("<Q", random.choice(HUGE)) + path.read_bytes()[8:])


def huge_tensor(path, random):
  """A header that claims more numbers than there are, or than can be."""
  sizes = random.choice(([2**62], [2**31, 2**31, 4], [10**6, 10**6], [-1], [1.5], ["4"], 4))
  entry = {"dtype": "F32", "shape": sizes, "data_offsets": random.choice(([0, 4], [4, 0], [0], 3))}
  header = json.dumps({"x": entry}).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def missing(path, random):
  del random
  path.unlink()


def a_folder(path, random):
  del random
  path.unlink()
  path.mkdir()


def renamed(path, random):
  path.rename(path.with_name(random.choice((path.name.upper(), f"{path.name}.bak", "x"))))


def a_link_to_itself(path, random):
  del random
  path.unlink()
  path.symlink_to(path.name)


def other_text(path, random):
  path.write_text(random.choice(TEXTS))


def pickled(path, random):
  del random
  path.write_bytes(
    b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94"
  )


def of_file(change, name):
  return lambda folder, random: change(folder / name, random)


def swapped(*names):
  def change(folder, random):
    del random
    one, other = ((folder / name).read_bytes() for name in names)
    (folder / names[0]).write_bytes(other)
    (folder / names[1]).write_bytes(one)

  return change


def key(name, path, *values):
  """Another value for a key of a JSON file; path: "a.b" for a key within an object."""

  def change(folder, random):
    stored = json.loads((folder / name).read_text())
    *outer, last = path.split(".")
    inner = stored
    for one in outer:
      inner = inner[one]
    inner[last] = random.choice(values)
    (folder / name).write_text(json.dumps(stored))

  change.__name__ = path
  return change


def without(name, *keys):
  def change(folder, random):
    stored = json.loads((folder / name).read_text())
    del stored[random.choice(keys)]
    (folder / name).write_text(json.dumps(stored))

  return change


def transposed(tensors, random):
  """A tensor with the same numbers in another shape."""
  moved = {name: np.moveaxis(one, -1, 0).copy() for name, one in tensors.items() if one.ndim}
  name = random.choice([one for one in sorted(moved) if moved[one].shape != tensors[one].shape])
  return tensors | {name: moved[name]}


def shortened(tensors, random):
  name = random.choice([one for one in sorted(tensors) if tensors[one].ndim])
  return tensors | {name: tensors[name][..., :-1].copy()}


def of_whole_numbers(tensors, random):
  return {name: one.astype(random.choice(("i4", "u1", "?"))) for name, one in tensors.items()}


def misnamed(tensors, random):
  name = random.choice(sorted(tensors))
  prefix = random.choice(("", name.partition("/")[0] + "/"))
  rest = {other: one for other, one in tensors.items() if other != name}
  return rest | {prefix + random.choice(NAMES): tensors[name]}


def one_more(tensors, random):
  name = random.choice(sorted(tensors))
  return tensors | {random.choice((f"{name}/x", f"{name}x", *NAMES)): np.ones((2, 2), np.float32)}


def one_less(tensors, random):
  name = random.choice(sorted(tensors))
  return {other: one for other, one in tensors.items() if other != name}


def not_finite(tensors, random):
  name = random.choice(sorted(tensors))
  array = tensors[name].copy()
  array.flat[random.randrange(array.size)] = random.choice((np.nan, np.inf, -np.inf))
  return tensors | {name: array}


ARRAYS = (transposed, shortened, of_whole_numbers, misnamed, one_more, one_less)


def arrays(change, file, description=""):
  """Other tensors in a file; description: the JSON file that lists them, which then agrees.

  Then only trained ones are others: that a run had no frozen inputs, or others, agrees too.
  """

  def alter(folder, random):
    path = folder / file
    tensors = safetensors.numpy.load(path.read_bytes())
    kept = {name: one for name, one in tensors.items() if description and "frozen" in name}
    changed = change({name: one for name, one in tensors.items() if name not in kept}, random)
    tensors = {**kept, **changed}
    data = safetensors.numpy.save(tensors)
    path.write_bytes(data)
    if description:
      stored = json.loads((folder / description).read_text())
      stored["sha256"] = hashlib.sha256(data).hexdigest()
      stored["tensors"] = {
        name: {"shape": list(one.shape), "dtype": str(one.dtype)} for name, one in tensors.items()
      }
      (folder / description).write_text(json.dumps(stored))

  alter.__name__ = change.__name__
  return alter


FILE = (cut, missing, a_folder, renamed, a_link_to_itself)
JSON = (*FILE, lengthened, no_utf8, other_text)
SAFETENSORS = (*FILE, lengthened, no_utf8, length_field, huge_header, huge_tensor, pickled)


def ways(form):
  """(name, function) of each way for a form of export, of which the lists are below."""
  found = []
  for name, changes in WAYS[form].items():
    for change in changes:
      title = f"{getattr(change, '__name__', 'change')} {name}"
      found.append((title, of_file(change, name) if name else change))
  return found


NONE = (7, None, [], "x", True)
_ADAPTER, _ADAPTER_ARRAYS = "adapter.json", "adapter.safetensors"
_PEFT, _PEFT_ARRAYS = "adapter_config.json", "adapter_model.safetensors"


def _adapter(*sections):
  keys = {
    "method": (7, None, [], {}, "no_such", True),
    "frozen_fingerprint": (7, None, [], {}, "", "0" * 64),
    "sections": (*NONE, {"lora": 7}, *sections),
    "inputs": (*NONE, {"template": 7}, {"template": "?"}, {"lengths": "x"}, {"lengths": [-1]}),
    "generation": (*NONE, {"max_new_tokens": "6"}, {"max_new_tokens": -1}, {"num_beams": 0}),
    "inference": (7, "x", ["x"], {"a": 1}, True, {"threshold": "x"}),
    "encoder_fingerprint": (7, "0" * 64, ["x"], {"x": 1}),
    "tensors": (*NONE, {}, {"x": 7}, {"trained/x": {"shape": [1], "dtype": "float32"}}),
    "sha256": (7, None, [], "", "0" * 64),
    "format_version": (0, 2, "1", None, [], {}, 1.5),
  }
  return {
    _ADAPTER: JSON,
    _ADAPTER_ARRAYS: (*SAFETENSORS, one_bit),
    "": (
      swapped(_ADAPTER, _ADAPTER_ARRAYS),
      without(_ADAPTER, *keys),
      *(key(_ADAPTER, name, *values) for name, values in keys.items()),
      *(arrays(change, _ADAPTER_ARRAYS) for change in ARRAYS),
      *(arrays(change, _ADAPTER_ARRAYS, _ADAPTER) for change in ARRAYS),
    ),
  }


def _peft(**keys):
  keys |= {"peft_type": (7, None, [], {}, "IA3", "lora", ""), "task_type": ("SEQ_CLS", 7, [], {})}
  keys |= {"modules_to_save": (["lm_head"],), "unknown": (1, [1], "x", {"a": 1})}
  required = ("peft_type", "r" if "r" in keys else "num_virtual_tokens")
  return {
    _PEFT: JSON,
    _PEFT_ARRAYS: SAFETENSORS,
    "": (
      swapped(_PEFT, _PEFT_ARRAYS),
      without(_PEFT, *required),
      *(key(_PEFT, name, *values) for name, values in keys.items()),
      *(arrays(change, _PEFT_ARRAYS) for change in (*ARRAYS, not_finite)),
    ),
  }


_ROWS = {"num_virtual_tokens": (0, -1, "5", None, 4, 6, 10**9, [], True, 5.0)}
_ROWS |= {"num_transformer_submodules": (2, "x", [])}
_LORA = {"r": (0, -1, "3", None, 3.0, True, [], 2, 10**30), "bias": ("all", 7, [], {})}
_LORA |= {"lora_alpha": (0, -1, "6", None, [], float("inf"), float("nan"), True)}
_LORA |= {"use_rslora": (True,), "use_dora": (True, "yes"), "rank_pattern": ({"q_proj": 4},)}
_LORA |= {"init_lora_weights": ("pissa", "loftq", [], 7)}


def _listed(name, *files):
  json_file = f"{name}.json"
  evil = ("../x", "/etc/hostname", "a//b", "a\\b", "C:x", "", ".", "x\n", "n" * 5000, "\0")
  entry = {"bytes": 1, "sha256": "0" * 64}
  lists = (*NONE, {"x": 3}, *({one: entry} for one in evil), {"x": entry | {"bytes": "1"}})
  keys = {"files": lists, "format": (*NONE, {}), "format_version": (0, 2, "1", None, [])}
  return {
    json_file: JSON,
    **dict.fromkeys(files, (*FILE, lengthened, one_bit)),
    "": (
      without(json_file, *keys),
      *(key(json_file, one, *values) for one, values in keys.items()),
    ),
  }


def in_npy(change):
  """Another array in the file of a prompt."""

  def alter(folder, random):
    (array,) = change({"": np.load(folder / NPY)}, random).values()
    np.save(folder / NPY, array)

  alter.__name__ = change.__name__
  return alter


def other_array(folder, random):
  """An array that is no prompt, or a file of several."""
  array = np.load(folder / NPY)
  arrays = (array[0], array[None], array[:0], array.astype(object), array.astype("c8"))
  arrays += (array.view([("x", "f4")]), array.astype("M8[s]"), array[:, :0])
  save = random.choice((np.save, np.save, np.save, np.savez))
  with (folder / NPY).open("wb") as file:
    save(file, random.choice(arrays))


NPY = "prompt.npy"
_NPY = {
  NPY: (*FILE, lengthened, other_text, pickled),
  "": (*(in_npy(change) for change in (transposed, shortened, not_finite)), other_array),
}
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def index(folder, random):
  """An index in place of the one file, which leads out of the folder or names nothing."""
  (folder / _WEIGHTS).rename(folder / "model-1.safetensors")
  file = random.choice(
    ("../model.safetensors", "/etc/hostname", "", ".", 7, None, "x\n", "n" * 5000)
  )
  (folder / _INDEX).write_text(
    json.dumps({"weight_map": random.choice(({"x": file}, [file], file))})
  )


_MERGED = {
  _CONFIG: JSON,
  _WEIGHTS: SAFETENSORS,
  "": (
    swapped(_CONFIG, _WEIGHTS),
    index,
    without(_CONFIG, "model_type", "hidden_size", "num_hidden_layers", "vocab_size"),
    key(_CONFIG, "model_type", 7, None, [], {}, "x", "bert", "gpt2"),
    key(_CONFIG, "hidden_size", 0, -1, "48", None, [], 10**9, 1.5, True),
    key(_CONFIG, "num_hidden_layers", -1, 0, 1, 5, "2", None, [], 10**4),
    key(_CONFIG, "num_attention_heads", 0, -1, 7, "x", None, []),
    key(_CONFIG, "vocab_size", 0, -1, 5, "x", None, 10**12),
    key(_CONFIG, "rope_parameters", 7, "x", [1], {"rope_type": "x"}, {"rope_theta": "x"}),
    *(arrays(change, _WEIGHTS) for change in ARRAYS),
  ),
}
WAYS = {
  "adapter": _adapter(
    {"lora": {"rank": "2"}},
    {"lora": {"rank": 0}},
    {"lora": {"rank": 3}},
    {"lora": {"rank": 10**9}},
    {"lora": {"rnk": 2}},
    {"lora": {"targets": ["attn/x"]}},
    {"lora": {"targets": [[1]]}},
    {"lora": {"rank": 2, "alpha": "nan"}},
    {"lora": {"rank": 2, "alpha": float("nan")}},
    {"lora": {"rank": 2, "alpha": -1}},
  ),
  "adapter of two passes": _adapter(
    {"recursion": 7}, {"recursion": {"connector": 7}}, {"recursion": {"connector": {"width": 0}}}
  ),
  "LORA": _peft(**_LORA),
  "PROMPT_TUNING": _peft(**_ROWS),
  "P_TUNING": _peft(**_ROWS),
  "PREFIX_TUNING": _peft(**_ROWS),
  "orbax": _listed("orbax"),
  "prompt_embeds": _listed("prompt_embeds", "prompt_embeds.safetensors", "prompt_embeds.jsonl"),
  "npy": _NPY,
  "merged": _MERGED,
}
