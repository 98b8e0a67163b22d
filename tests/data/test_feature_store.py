"""Encoder states come back bit by bit, from memory, from disk and from other processes."""

import os
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from frozen_jax.data import feature_store
from frozen_jax.data.feature_store import FeatureStore, store_folder, text_key, tokenizer_hash

WIDTH = 6


def rows(count, dtype=np.float32, seed=0):
  rng = np.random.default_rng(seed)
  made = [rng.normal(size=(1 + i % 4, WIDTH)).astype(dtype) for i in range(count)]
  return {text_key([seed, i]): row for i, row in enumerate(made)}


def filled(folder, known, **options):
  store = FeatureStore(folder, WIDTH, next(iter(known.values())).dtype, **options)
  for key, row in known.items():
    store.add(key, row)
  store.flush()
  return store


def segments(folder):
  return sorted(folder.glob("*.array_record"))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_what_was_kept_comes_back(tmp_path, dtype, memory):
  known = rows(20, dtype)
  writer = filled(tmp_path, known, memory_bytes=memory)
  for store in (writer, FeatureStore(tmp_path, WIDTH, dtype, memory_bytes=memory)):
    keys = [*list(known)[::-1], text_key([9, 9]), next(iter(known))]
    found = store.find(keys)
    assert found[-2] is None and len(store) == len(known)
    for key, row in zip(keys, found, strict=True):
      if row is not None:
        assert row.dtype == dtype
        np.testing.assert_array_equal(row, known[key])


def test_memory_holds_the_rows_used_last(tmp_path):
  known = {text_key([i]): np.full((1, WIDTH), i, np.float32) for i in range(4)}
  first, second, third, fourth = known
  store = FeatureStore(tmp_path, WIDTH, np.float32, memory_bytes=3 * 4 * WIDTH, disk_bytes=0)
  for key in (first, second, third):
    store.add(key, known[key])
  store.find([first])
  store.add(fourth, known[fourth])
  assert [row is not None for row in store.find(list(known))] == [True, False, True, True]


def test_a_kept_row_is_not_a_view_of_what_was_given(tmp_path):
  batch = np.ones((2, 3, WIDTH), np.float32)
  store = FeatureStore(tmp_path, WIDTH, np.float32, disk_bytes=0)
  store.add(b"k", batch[0])
  batch[:] = 0
  (row,) = store.find([b"k"])
  assert row.all() and row.base is None and not row.flags.writeable


def test_states_of_another_shape_or_type_are_a_bug(tmp_path):
  store = FeatureStore(tmp_path, WIDTH, np.float32)
  for wrong in (np.ones((2, WIDTH + 1), np.float32), np.ones((2, WIDTH), np.float16)):
    with pytest.raises(ValueError, match="float32"):
      store.add(b"k", wrong)


def test_a_full_segment_is_written_without_being_asked(tmp_path, monkeypatch):
  monkeypatch.setattr(feature_store, "_SEGMENT_BYTES", 8 * 4 * WIDTH)
  known = {text_key([i]): np.full((1, WIDTH), i, np.float32) for i in range(20)}
  store = FeatureStore(tmp_path, WIDTH, np.float32, memory_bytes=0)
  for key, row in known.items():
    store.add(key, row)
  assert len(segments(tmp_path)) == 2
  assert all(row is not None for row in store.find(list(known)))
  assert len(FeatureStore(tmp_path, WIDTH, np.float32)) == 16


def test_nothing_is_written_twice(tmp_path):
  known = rows(5)
  store = filled(tmp_path, known)
  for key, row in known.items():
    store.add(key, row)
  store.flush()
  assert len(segments(tmp_path)) == 1


def test_processes_share_a_folder(tmp_path):
  mine = FeatureStore(tmp_path, WIDTH, np.float32)
  theirs = rows(6, seed=1)
  filled(tmp_path, theirs)
  assert mine.find(list(theirs)) == [None] * 6
  mine.flush()
  for row, known in zip(mine.find(list(theirs)), theirs.values(), strict=True):
    np.testing.assert_array_equal(row, known)


def test_a_writer_that_is_killed_leaves_nothing_half_done(tmp_path):
  program = """
import os, sys, pathlib, numpy as np
from frozen_jax.data import feature_store as fs
store = fs.FeatureStore(pathlib.Path(sys.argv[1]), 6, np.float32)
for i in range(50):
  store.add(fs.text_key([i]), np.ones((200, 6), np.float32))
os.replace = lambda *names: os._exit(9)
store.flush()
"""
  done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
  assert done.returncode == 9
  (left,) = tmp_path.iterdir()
  assert len(FeatureStore(tmp_path, WIDTH, np.float32)) == 0
  assert left.exists()  # its writer may still be at work
  long_ago = time.time() - 2 * feature_store.ABANDONED_SECONDS
  os.utime(left, (long_ago, long_ago))
  FeatureStore(tmp_path, WIDTH, np.float32)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "row", "keys"])
def test_a_damaged_segment_is_left_out_with_one_warning(tmp_path, caplog, damage):
  good, bad = rows(3, seed=1), rows(3, seed=2)
  bad = {key: np.tile(row, (2000, 1)) for key, row in bad.items()}
  filled(tmp_path, good)
  filled(tmp_path, bad)
  path = segments(tmp_path)[1]
  data = bytearray(path.read_bytes())
  if damage == "row":
    at = data.index(next(iter(bad.values())).tobytes()[:64])
    data[at + 9] ^= 1
  elif damage == "keys":
    data[data.index(b"".join(bad)) + 5] ^= 1
  path.write_bytes(data[: {"empty": 0, "cut": len(data) // 2}.get(damage)])
  store = FeatureStore(tmp_path, WIDTH, np.float32, memory_bytes=0)
  assert store.find(list(bad)) == [None] * 3 == store.find(list(bad))
  assert all(row is not None for row in store.find(list(good)))
  (warning,) = caplog.messages
  assert path.name in warning and "damaged" in warning
  store.flush()
  for key, row in bad.items():  # computed again
    store.add(key, row)
  store.flush()
  assert all(row is not None for row in store.find(list(bad)))
  assert len(caplog.messages) == 1


def test_a_folder_may_be_deleted_at_any_time(tmp_path, caplog):
  known = rows(3)
  filled(tmp_path, known)
  store = FeatureStore(tmp_path, WIDTH, np.float32)
  for path in segments(tmp_path):
    path.unlink()
  assert store.find(list(known)) == [None] * 3
  assert len(caplog.messages) == 1
  for key, row in known.items():
    store.add(key, row)
  store.flush()
  assert len(FeatureStore(tmp_path, WIDTH, np.float32)) == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux to count open files")
def test_no_file_stays_open(tmp_path):
  count = lambda: len(os.listdir("/proc/self/fd"))
  before = count()
  for seed in range(8):
    filled(tmp_path, rows(3, seed=seed))
  store = FeatureStore(tmp_path, WIDTH, np.float32, memory_bytes=0)
  assert all(row is not None for seed in range(8) for row in store.find(list(rows(3, seed=seed))))
  assert count() == before


def test_a_full_folder_gets_nothing_more(tmp_path, caplog):
  known, more = rows(3, seed=1), rows(3, seed=2)
  filled(tmp_path, known)
  size = sum(path.stat().st_size for path in segments(tmp_path))
  store = filled(tmp_path, more, disk_bytes=int(1.5 * size))
  (warning,) = caplog.messages
  assert "in memory only" in warning and "reached" in warning
  assert len(list(tmp_path.iterdir())) == 1
  assert all(row is not None for row in store.find([*known, *more]))


def test_where_nothing_can_be_written_memory_remains(tmp_path, caplog):
  blocked = tmp_path / "file"
  blocked.write_text("")
  known = rows(3)
  store = filled(blocked / "folder", known)
  store.add(text_key([5, 5]), known[text_key([0, 0])])
  store.flush()
  (warning,) = caplog.messages
  assert "in memory only" in warning
  assert all(row is not None for row in store.find(list(known)))


def test_no_space_is_one_warning(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(feature_store, "ArrayRecordWriter", lambda _, how: _writer("/dev/full", how))
  known = rows(3)
  store = filled(tmp_path, known)
  assert all(row is not None for row in store.find(list(known)))
  (warning,) = caplog.messages
  assert "No space left" in warning and list(tmp_path.iterdir()) == []


_writer = feature_store.ArrayRecordWriter


def test_without_a_disk_nothing_is_read_or_written(tmp_path):
  filled(tmp_path, rows(3))
  before = list(tmp_path.iterdir())
  store = filled(tmp_path, rows(3, seed=5), disk_bytes=0)
  assert len(store) == 3 and list(tmp_path.iterdir()) == before


def test_keys_part_what_the_encoder_could_tell_apart():
  texts = [[], [1], [1, 1], [1, 2], [2, 1], [258], [1, 0]]
  assert len({text_key(ids) for ids in texts}) == len(texts)
  assert text_key(np.array([1, 2], np.int64)) == text_key([1, 2])


def test_the_folder_names_encoder_and_type(tmp_path, monkeypatch):
  monkeypatch.setenv("FROZEN_JAX_CACHE", str(tmp_path))
  folders = {
    store_folder("f", np.float32),
    store_folder("g", np.float32),
    store_folder("f", ml_dtypes.bfloat16),
  }
  assert len(folders) == 3 and all(folder.is_relative_to(tmp_path) for folder in folders)


def test_use_does_not_change_a_tokenizer():
  tokenizer = word_tokenizer("a b c")
  before = tokenizer_hash(tokenizer)
  tokenizer(["a b", "c"], padding=True, truncation=True, max_length=2)
  assert tokenizer_hash(tokenizer) == before == tokenizer_hash(word_tokenizer("a b c"))


def word_tokenizer(words):
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  vocabulary = {word: index for index, word in enumerate(["<pad>", *words.split()])}
  made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
