"""Stop strings: what the tail of a response tells is what its whole text tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlalign.data.example import Example
from rlalign.data.settings import Sampling
from rlalign.decoding import sampler
from rlalign.decoding.stopping import Stops
from rlalign.testing import Bytes

# Pieces of several kinds: bytes of characters that take one to four of them, words, nothing at all, and one that
# loses its first space at the start of a text, as in a sentencepiece vocabulary.
PIECES: list[bytes] = [
    *(bytes([b]) for b in "aé€😀".encode()),
    b"a", b"b", b"ab", b"\n", b"\n\n", b"", b"", b" a", b" b", "é".encode(), "€b".encode(), b"\xff",
]  # fmt: skip
TEXTS = ["a", "ab", "\n\n", "é", "€", "😀", "b a", " a b", "a\n", "€b", "aa a", "b\n\na", "�", "éé"]


def text(actions_T: Tensor) -> str:
    return b"".join(PIECES[i] for i in actions_T.tolist()).decode("utf-8", "replace").removeprefix(" ")


def by_whole_text(actions_T: Tensor, strings: Sequence[str], least: int) -> int | None:
    """The first length whose whole text holds a stop string."""
    for length in range(max(1, least), len(actions_T) + 1):
        if any(stop in text(actions_T[:length]) for stop in strings):
            return length
    return None


tokens = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=60)
stops = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)


@pytest.mark.parametrize("every", [1, 8])
@settings(max_examples=400, deadline=None)
@given(tokens, stops, st.integers(0, 12))
def test_a_tail_ends_a_response_where_the_whole_text_does(
    every: int, actions: list[int], strings: list[str], least: int
) -> None:
    actions_T = torch.tensor(actions)
    looked = Stops(strings, text, least)
    found = None
    for seen in range(0, len(actions), every):
        found = looked.length(actions_T[: seen + every], seen)
        if found is not None:
            break
    expected = by_whole_text(actions_T, strings, least)
    if every > 1 and "�" in strings:  # half a character, which is gone before anybody looks
        assert found is None or any(stop in text(actions_T[:found]) for stop in strings)
    else:
        assert found == expected


@settings(max_examples=200, deadline=None)
@given(tokens, stops, st.integers(0, 12))
def test_what_tails_miss_is_found_in_the_whole_text(
    actions: list[int], strings: list[str], least: int
) -> None:
    """A tokenizer that says nothing of a few tokens alone."""
    actions_T = torch.tensor(actions)

    def whole_only(part_T: Tensor) -> str:
        return text(part_T) if torch.equal(part_T, actions_T[: len(part_T)]) else ""

    looked = Stops(strings, whole_only, least)
    expected = by_whole_text(actions_T, strings, least)
    found = looked.earlier(actions_T, text(actions_T))
    holds = any(stop in text(actions_T) for stop in strings)
    before = any(stop in text(actions_T[:-1]) for stop in strings)
    assert found == (expected if holds and before and expected != len(actions) else None)


def test_only_the_tail_is_read() -> None:
    read: list[int] = []

    def noted(actions_T: Tensor) -> str:
        read.append(len(actions_T))
        return text(actions_T)

    looked = Stops(["\n\n", "€"], noted, least=3)
    actions_T = torch.full((400,), PIECES.index(b"ab"))
    actions_T[398] = PIECES.index(b"\n\n")
    found = (looked.length(actions_T[: seen + 1], seen) for seen in range(400))
    assert next(length for length in found if length is not None) == 399
    assert read[-1] == 399, "the whole text says so too"
    assert max(read[:-1]) <= 4 * 2 + 8 + 1


def test_a_text_is_cut_at_the_first_of_them() -> None:
    assert Stops(["c", "b"], text, 0).cut("abcb") == "a"
    assert Stops(["c"], text, 0).cut("ab") == "ab"


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("least", [0, 5])
def test_in_the_loop_it_is_as_if_every_whole_text_were_read(
    every: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that often make characters of two and three of them."""
    policy = Bytes(Bytes.Config())
    policy.setup()
    with torch.no_grad():
        policy.table[:, 0xC3] += 4
        policy.table[0xC3, 0xA8:0xAA] += 12
        policy.table[:, 0xE2] += 4
        policy.table[0xE2, 0x82] += 12
        policy.table[0x82, 0xAC] += 12
    how = Sampling(samples=6, max_new_tokens=40, stop=("é", "€ ", "th", "a", "1"), min_new_tokens=least)
    free = Sampling(samples=6, max_new_tokens=40, min_new_tokens=least)
    examples = [Example(str(i), str(i)) for i in range(20)]
    uniforms = torch.rand(20, 6, 40, generator=torch.Generator().manual_seed(0))
    unstopped = policy.sample(examples, free, uniforms)
    monkeypatch.setattr(sampler, "steps_between_looks", lambda device: every)
    rollout = policy.sample(examples, how, uniforms)
    stopped = 0
    for i in range(len(rollout)):
        whole_T = unstopped.actions_NT[i, : int(unstopped.length_N[i])]
        expected = next(
            (
                n
                for n in range(max(1, least), len(whole_T) + 1)
                if any(s in policy.text(whole_T[:n]) for s in how.stop)
            ),
            None,
        )
        length = int(rollout.length_N[i])
        assert length == (len(whole_T) if expected is None else expected)
        assert torch.equal(rollout.actions_NT[i, :length], whole_T[:length])
        assert bool(rollout.finished_N[i]) == (expected is not None or bool(unstopped.finished_N[i]))
        assert not any(stop in rollout.texts[i] for stop in how.stop)
        stopped += expected is not None
    assert stopped > 40
