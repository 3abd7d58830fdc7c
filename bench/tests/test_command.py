"""What the commands say and write, beside those of entries."""

from __future__ import annotations

import json

import pytest

from .conftest import call


def test_the_leaderboard_is_shown_and_written(made):
    status, said = call("small.yaml", "table", "--to", "board")
    assert status == 0
    assert said.startswith("# Leaderboard of small\n")
    written = {path.name: path.read_text() for path in (made / "board").iterdir()}
    assert set(written) == {"leaderboard.md", "leaderboard.json", "leaderboard.csv", "readme.md"}
    assert said.startswith(written["leaderboard.md"])
    assert "| `reinforce` |" in written["readme.md"]
    told = json.loads(written["leaderboard.json"])
    assert "steep" in json.dumps(told) and "flat" in json.dumps(told)


def test_what_is_missing_stands_under_the_leaderboard(made):
    """And the results are where they are said to be."""
    rows = (made / "small-results/small.jsonl").read_text().splitlines()
    (made / "there").mkdir()
    (made / "there/small.jsonl").write_text("\n".join(row for row in rows if '"seed":1' not in row) + "\n")
    status, said = call("small.yaml", "table", "--results", "there")
    assert status == 0
    assert "- steep/rloo/1: not run yet" in said and "- steep/reinforce/1: not run yet" in said
    assert (made / "there/leaderboard.md").exists()


@pytest.mark.slow
def test_figures_are_drawn(made):
    pytest.importorskip("matplotlib")
    status, said = call("small.yaml", "plot", "--to", "figures")
    assert status == 0
    drawn = sorted(path.name for path in (made / "figures").iterdir())
    assert "scores.svg" in drawn and all(f"figures/{name}" in said for name in drawn)
    status, said = call("small.yaml", "plot", "--png")
    assert (made / "small-results/scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_plan_says_what_is_left(made, fresh):
    assert call("small.yaml", "plan")[1].endswith("0 runs are left\n")
    status, said = call(fresh, "plan", "--names", "--only", "flat")
    assert status == 0
    assert "    main/flat/rloo/0\n    main/flat/reinforce/0\n" in said and "2 runs are left" in said


def test_there_is_no_leaderboard_without_entries(fresh):
    status, said = call(fresh, "table")
    assert status == 2
    assert said.startswith("error: ") and "no entries" in said


@pytest.mark.parametrize("command", ["plan", "run", "table", "plot", "export", "add", "verify"])
def test_a_file_that_is_no_suite_is_refused_by_every_command(tmp_path, command):
    (tmp_path / "other.yaml").write_text("task: bandit\n")
    more = [tmp_path / "x.jsonl"] if command in ("export", "add") else []
    status, said = call(tmp_path / "other.yaml", command, *more)
    assert status == 2
    assert said.startswith(f"error: {tmp_path}/other.yaml")
