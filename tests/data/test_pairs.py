"""Question-passage pairs: joined as the tokenizer joins them, packed, sampled, resumed, split."""

import itertools
import json

import numpy as np
import pytest

from frozen_jax.core.errors import UserError
from frozen_jax.data.pair_encoder import PairEncoder
from frozen_jax.data.pairs import GroupBatches, GroupOptions, pack_texts, validation_batches
from tests.re_ranking import PASSAGES, groups, pair_encoder, pairs, tokenizer, unpacked


def batches(**changes):
  arguments = {"batch_size": 4, "options": GroupOptions(3), "seed": 5} | changes
  chosen = arguments.pop("groups", None) or groups()
  return GroupBatches(chosen, PASSAGES.__getitem__, pair_encoder(), **arguments)


def equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("types", [(0, 1), (0, 0)])
def test_two_texts_are_joined_as_the_tokenizer_joins_them(types):
  words = tokenizer(types)
  long = ("w1 w2", " ".join(f"w{i % 40}" for i in range(60)))
  listed = [*pairs(), long]
  texts = pair_encoder(words)(listed)
  for pair, text in zip(listed, texts, strict=True):
    theirs = words(*pair, truncation="only_second", max_length=40, return_token_type_ids=True)
    assert list(text.tokens) == theirs["input_ids"] and list(text.types) == theirs["token_type_ids"]
  assert [text.truncated for text in texts] == [pair == long for pair in listed]


def test_an_encoder_without_token_types_gets_none():
  (text,) = pair_encoder(types=1)([("w1", "w2 w3")])
  assert list(text.types) == [0] * 6


def test_a_question_without_room_for_a_passage_is_refused():
  with pytest.raises(UserError, match="leaves no room for a passage in 40"):
    pair_encoder()([(" ".join(["w1"] * 37), "w2")])


@pytest.mark.parametrize("lengths", [(), (24, 16), (64,)])
def test_bad_lengths(lengths):
  with pytest.raises(UserError, match="rising numbers up to 48"):
    PairEncoder(tokenizer(), 2, 48, lengths)


def test_an_encoder_without_a_tokenizer():
  with pytest.raises(UserError, match="no tokenizer"):
    PairEncoder(None, 2, 48)


def test_a_token_that_the_encoder_does_not_have():
  words = tokenizer()
  texts = PairEncoder(words, 2, 48, (16, 24), words.convert_tokens_to_ids("w3"))
  assert len(texts([("w1", "w2")])) == 1
  with pytest.raises(UserError, match="the text 'w1 w3': token 2 has the id .*'w3'"):
    texts([("w2", "w1 w3")])
  with pytest.raises(UserError, match="the tokens that join .*'</s>'"):
    PairEncoder(words, 2, 48, (16, 24), 2)


def test_a_batch_holds_a_positive_first_and_negatives_of_its_question():
  batch = next(batches())
  assert batch["tokens"].shape == batch["types"].shape == (1, 6, 40)  # 16 texts of 13 tokens
  assert batch["mask"].shape == (1, 6, 8, 40) and batch["text_index"].shape == (1, 4, 4)
  words = tokenizer()
  for texts in unpacked(batch):
    decoded = [words.decode(text) for text in texts]
    number = int(decoded[0].split("w")[2].split()[0])  # of "<s> what has wN </s> the colour wN ..."
    parts = [text.split("</s>") for text in decoded]
    assert {part[0] for part in parts} == {f"<s> what has w{number} "}
    passages = [PASSAGES.index(part[1].strip()) for part in parts]
    assert passages[0] == number and len(set(passages)) == 4
    assert set(passages[1:]) <= {(number + step) % 40 for step in range(1, 6)}


def test_negatives_are_drawn_anew_and_every_question_comes_once_an_epoch():
  two_epochs = list(itertools.islice(batches(), 20))
  first = [row[0].tobytes() for batch in two_epochs for row in unpacked(batch)]
  assert len(set(first[:40])) == 40 and set(first[:40]) == set(first[40:])
  by_question = {}
  for batch in two_epochs:
    for row in unpacked(batch):
      by_question.setdefault(row[0].tobytes(), set()).add(tuple(t.tobytes() for t in row[1:]))
  assert max(map(len, by_question.values())) == 2


def test_in_batch_negatives_are_positives_of_the_others():
  found = unpacked(next(batches(options=GroupOptions(1, 2))))
  assert [len(row) for row in found] == [4] * 4
  words = tokenizer()
  passage = lambda text: words.decode(text).split("</s>")[1]
  positives = {passage(row[0]) for row in found}
  for row in found:
    others = {passage(text) for text in row[2:]}
    assert len(others) == 2 and others <= positives - {passage(row[0])}


def test_missing_negatives_leave_texts_empty():
  few = [group._replace(negatives=group.negatives[:1]) for group in groups()]
  batch = next(batches(groups=few))
  np.testing.assert_array_equal(batch["text_index"][0] >= 0, [[True, True, False, False]] * 4)
  assert (batch["mask"].any(-1).sum(), batch["mask"].sum()) == (8, (batch["tokens"] > 0).sum())


def test_hosts_share_the_batches_and_a_position_can_be_restored():
  whole = batches(units=2)
  halves = [batches(shard=(index, 2)) for index in (0, 1)]
  for _ in range(12):
    parts = [next(half) for half in halves]
    equal(next(whole), {n: np.concatenate([part[n] for part in parts]) for n in parts[0]})
  state, later = whole.get_state(), batches(units=2)
  later.set_state(state)
  for _ in range(3):
    equal(next(whole), next(later))
  assert later.counts == whole.counts
  with pytest.raises(UserError, match="39 questions to train on now and there were 40"):
    batches(groups=groups()[:39]).set_state(state)


def test_truncated_passages_are_counted():
  long = " ".join(["w1"] * 60)
  truncated = GroupBatches(groups(), lambda key: long, pair_encoder(), 4, GroupOptions(1))
  drawn = next(truncated)
  assert truncated.counts == {"truncated": 8} and drawn["mask"].any(-1).sum() == 8
  for _ in range(60):  # epochs: a passage counts once
    next(truncated)
  passages = {key for group in groups() for key in (*group.positives, *group.negatives)}
  assert truncated.counts["truncated"] == len(passages)
  json.dumps(truncated.get_state())


def test_validation_takes_the_hardest_and_fills_up():
  found = list(validation_batches(groups()[:6], PASSAGES.__getitem__, pair_encoder(), 4, 2))
  assert [batch["text_index"].shape for batch in found] == [(1, 4, 3)] * 2
  assert (found[1]["text_index"][0] >= 0).tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
  assert PASSAGES[1] in tokenizer().decode(unpacked(found[0])[0][1])


def test_units_have_their_own_rows_and_the_same_texts():
  one, four = next(batches()), next(batches(units=4))
  assert four["text_index"].shape == (4, 1, 4) and four["tokens"].shape[0] == 4
  for mine, theirs in zip(unpacked(one), unpacked(four), strict=True):
    for a, b in zip(mine, theirs, strict=True):
      np.testing.assert_array_equal(a, b)


def test_texts_share_rows_and_none_is_left_out():
  lengths = [int(n) for n in np.random.default_rng(0).integers(20, 257, 64)]
  rows = pack_texts(lengths, 256, 8)
  assert sorted(index for row in rows for index in row) == list(range(64))
  assert all(sum(lengths[index] for index in row) <= 256 for row in rows)
  assert sum(lengths) > 0.85 * 256 * len(rows)
  assert pack_texts([1] * 9, 256, 8) == [list(range(8)), [8]] and pack_texts([], 256, 8) == []


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch_size": 4, "shard": (0, 3)}, "cannot be split evenly .* 3 in all"),
    ({"batch_size": 4, "units": 8}, "cannot be split evenly .* 8 in all"),
    ({"batch_size": 6, "units": 3, "shard": (0, 2)}, "cannot be split evenly"),
    ({"options": GroupOptions(1, 4)}, "need more than 4 questions"),
  ],
)
def test_bad_batches(changes, message):
  with pytest.raises(UserError, match=message):
    batches(**changes)
  with pytest.raises(UserError, match="no questions"):
    GroupBatches([], PASSAGES.__getitem__, pair_encoder(), 4)
  with pytest.raises(UserError, match="at least one"):
    GroupOptions(0, 0)
