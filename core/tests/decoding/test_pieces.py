"""A response's text, token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from rlalign.decoding.pieces import pieces
from rlalign.testing import Bytes

POLICY = Bytes(Bytes.Config())
END = POLICY.ends[0]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_they_make_up_the_text_and_letters_stay_whole(text: str) -> None:
    tokens = tensor([*text.encode(), END])
    found = pieces(POLICY.text, tokens)
    assert len(found) == len(tokens) and "".join(found) == text and found[-1] == ""
    assert [piece for piece in found if piece] == list(text)


def test_bytes_that_never_become_a_letter() -> None:
    tokens = tensor([104, 0xE6, 0x97])  # "h", and two bytes of three
    assert "".join(pieces(POLICY.text, tokens)) == POLICY.text(tokens) == "h\ufffd"
    assert pieces(POLICY.text, tensor([], dtype=int)) == []


def test_no_token_is_read_with_all_before_it() -> None:
    asked = []

    def text(tokens_T):
        asked.append(len(tokens_T))
        return POLICY.text(tokens_T)

    assert "".join(pieces(text, tensor(list(b"abcdefghij" * 10)))) == "abcdefghij" * 10
    assert max(asked) == 2
