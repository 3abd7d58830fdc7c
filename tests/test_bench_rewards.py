"""benchmarks/rewards.py still runs, on every metric of text that is installed, and its sentences are what it says."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
from benchmarks import rewards

from rlalign.config.registry import installed


def test_the_sentences_are_as_it_says():
    made = rewards.examples(1, 400)
    assert len(made) == 100 and all(len(e.references) == 3 and len(e.responses) == 8 for e in made)
    texts = [text for e in made for text in e.references]
    assert statistics.fmean(len(text.split()) - 1 for text in texts) == pytest.approx(18, abs=1.5)
    assert made[0].references == rewards.examples(1, 400)[0].references
    assert set(texts).isdisjoint(text for e in rewards.examples(2, 400) for text in e.references)


def test_every_metric_is_measured(tmp_path, capsys, monkeypatch):
    written = tmp_path / "rewards.json"
    monkeypatch.setattr(sys, "argv", ["rewards", "--rounds", "2", "--pairs", "8", "--json", str(written)])
    rewards.main()
    report = json.loads(written.read_text())
    names = {one.name for one in installed() if one.distribution == rewards.PACKAGE}
    assert set(report["seconds"]) | set(report["left out"]) == names
    assert {"parent", "diversity", "regex"} <= set(report["seconds"])
    for by in report["seconds"].values():
        assert by and all(0 < x["least"] <= x["median"] <= x["most"] for x in by.values())
    assert report["machine"]["load"] >= 0
    printed = capsys.readouterr().out
    assert all(f"| `{name}` |" in printed for name in report["seconds"])
