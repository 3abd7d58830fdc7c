"""Reports in a narrow terminal."""

from __future__ import annotations

from rlalign.cli.terminal import folded


def test_a_long_line_goes_on_under_its_text() -> None:
    line = "  needs     " + "entropy, logprobs, " * 6 + "values"
    first, *rest = folded(line, 60).splitlines()
    assert first.startswith("  needs     entropy")
    assert rest and all(more.startswith(" " * 12) and more[12] != " " for more in rest)
    assert max(map(len, folded(line, 60).splitlines())) <= 60
    marked = folded("    ! " + "a word " * 20, 40).splitlines()
    assert all(more.startswith("      a") or more.startswith("      w") for more in marked[1:])


def test_columns_and_short_lines_stay_as_they_are() -> None:
    table = "  weights        28.4        28.4         3.5\n" + "short\n"
    assert folded(table, 40) == table


def test_what_goes_to_a_pipe_keeps_its_lines() -> None:
    assert folded("a word " * 50) == "a word " * 50
