"""What a person sees: everything there is, nothing there is not, at a readable pace."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlalign.running.display import Display, LiveDisplay, PlainDisplay, make_display

METRICS = {
    "reward/total": 0.71251,
    "reward/classifier": 0.8,
    "reward/kl": -0.0875,
    "kl/k1": 0.875,
    "kl/coef": 0.1,
    "loss": 0.0312,
    "tokens": 2400,
    "length": 37.5,
    "time/iteration": 2.0,
    "time/rollout": 1.25,
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainDisplay, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainDisplay(stream, clock=clock), stream, clock


def test_a_line_holds_what_there_is():
    display, stream, clock = plain()
    display.started("ppo-2", Path("runs/ppo-2"), ["sft", "align"])
    display.phase("align", 10)
    clock.now = 3.0
    display.iteration(1, METRICS)
    clock.now = 6.0
    display.iteration(2, {"loss": 0.5})
    assert stream.getvalue().splitlines() == [
        "run ppo-2 in runs/ppo-2: sft, align",
        "align: 10 iterations",
        "align  1/10  reward 0.7125 (classifier 0.8, kl -0.0875)  kl 0.875  loss 0.0312"
        "  1,200 tokens/s  2.0 s each  27.0 s left",
        "align  2/10  loss 0.5  24.0 s left",
    ]


def test_at_most_one_line_a_second_but_always_the_last():
    display, stream, clock = plain()
    display.phase("align", 100)
    for i in range(1, 51):
        clock.now += 0.125
        display.iteration(i, {})
    shown = [line.split()[1] for line in stream.getvalue().splitlines()[1:]]
    assert shown[:2] == ["8/100", "16/100"] and len(shown) == 6
    display.iteration(51, {})
    display.note("align ended early: the KL target was reached")  # as `finish_phase` does
    assert [line.split()[0] for line in stream.getvalue().splitlines()[-2:]] == ["align", "align"]
    assert "51/100" in stream.getvalue()
    display.iteration(100, {})
    assert "100/100" in stream.getvalue()


def test_evaluation_and_summary_are_shown_by_name():
    display, stream, _ = plain()
    display.phase("align", 5)
    display.evaluated({"eval/bleu": 0.25, "eval/reward/classifier": 0.5, "time/evaluate": 3.0})
    display.saved(Path("runs/x/checkpoints/00000001"))
    display.finished({"iterations": 5, "reward/total": 0.123456, "model": "runs/x/model"})
    display.close()
    assert stream.getvalue().splitlines()[1:] == [
        "align  0/5  evaluation: bleu 0.25 · reward/classifier 0.5",
        "finished",
        "  iterations: 5",
        "  reward/total: 0.1235",
        "  model: runs/x/model",
    ]


def test_the_live_panel_holds_what_there_is():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=110, _environ={"TERM": "xterm"})
    display = LiveDisplay(console, clock=clock)
    display.started("ppo [2]", Path("runs/ppo [2]"), ["sft", "align"])
    display.phase("align", 4)
    clock.now = 120.0
    display.iteration(1, METRICS)
    display.evaluated({"eval/bleu": 0.25})
    display.saved(Path("runs/x/checkpoints/00000001"))
    display.note("a [note]")
    display.finished({"reward/total": 0.5})
    display.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in (
        *("ppo [2] · runs/ppo [2]", "align (2 of 2)", "1/4", "6 min left"),
        *("0.7125 (classifier 0.8, kl -0.0875)", "0.875", "1,200 tokens/s", "rollout 1.2 s", "length 37.5"),
        *("1/4: bleu 0.25", "00000001", "a [note]", "reward/total: 0.5"),
    ):
        assert shown in text, shown
    assert "gradient norm" not in text


def test_an_empty_live_run_shows_and_closes():
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=60))
    display.note("before")
    display.started("x", Path("x"), ["only"])
    display.close()
    display.close()


def test_lines_where_nobody_watches(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(make_display(), PlainDisplay)
    assert isinstance(make_display(plain=False), LiveDisplay)
    assert isinstance(make_display(plain=True), PlainDisplay)


@pytest.mark.parametrize("term, expected", [("xterm", LiveDisplay), ("dumb", PlainDisplay)])
def test_the_terminal_decides(monkeypatch, term, expected):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", term)
    display: Display = make_display()
    assert isinstance(display, expected)


@pytest.mark.parametrize("widgets, expected", [(True, LiveDisplay), (False, PlainDisplay)])
def test_a_notebook_draws_where_it_has_widgets(monkeypatch, widgets, expected):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr("rlalign.running.display.find_spec", lambda name: widgets or None)
    monkeypatch.setattr("rich.console.Console", lambda: type("Jupyter", (), {"is_jupyter": True})())
    assert isinstance(make_display(), expected)


def test_importing_it_costs_nothing():
    code = "import sys, rlalign.running.display; assert not {'torch', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
