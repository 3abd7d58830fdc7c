"""What a person sees: everything there is, nothing there is not, at a readable pace."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from rlalign.running.display import Display, LiveDisplay, PlainDisplay, make_display

METRICS = {
    "reward/total": 0.71251,
    "reward/classifier": 0.8,
    "reward/kl": -0.0875,
    "kl/k1": 0.02,
    "kl/per_response": 0.875,
    "kl/coef": 0.1,
    "loss": 0.0312,
    "sampler/gap": 4e-7,
    "tokens": 2400,
    "length": 37.5,
    "finished": 0.98,
    "groups/tied": 0.25,
    "time/iteration": 2.0,
    "time/rollout": 1.25,
    "time/reward/classifier": 0.5,
}
EVALUATION = {
    "eval/responses": 512.0,
    "eval/length": 11.5,
    "eval/finished": 1.0,
    "eval/total": 0.58,
    "eval/classifier": 0.71,
    "eval/kl": -0.13,
    "eval/kl/k1": 0.16,
    "eval/kl/per_response": 1.89,
    "eval/kl/coef": 0.07,
    "eval/reviews/distinct-2": 0.106,
    "time/evaluate": 3.0,
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
    clock.now = 9.0
    display.iteration(3, {"loss": 0.4, "reward/total": 0.5})  # learned from a log
    assert stream.getvalue().splitlines() == [
        "run ppo-2 in runs/ppo-2: sft, align",
        "align: 10 iterations",
        "align  1/10  reward 0.7125 (classifier 0.8, kl -0.0875)  KL 0.875  length 37.5  finished 98 %"
        "  2.0 s each  27.0 s left",
        "align  2/10  loss 0.5  24.0 s left",
        "align  3/10  reward 0.5  loss 0.4  21.0 s left",
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
    display.evaluated(EVALUATION)
    display.iteration(5, {})
    display.evaluated(EVALUATION | {"eval/total": 0.74, "eval/kl/per_response": 2e-9})
    display.sample({"prompt": "today we saw", "response": "this\nplay ."})
    display.saved(Path("runs/x/checkpoints/00000001"))
    display.finished({"iterations": 5, "reward/total": 0.123456, "model": "runs/x/model"})
    display.close()
    assert stream.getvalue().splitlines()[1:] == [
        "align  0/5  evaluation: reward 0.58 · classifier 0.71 · KL 1.89 · length 11.5 · finished 100 %",
        "align  5/5",
        "align  5/5  evaluation: reward 0.74 (0.58 at 0/5) · classifier 0.71 (0.71 at 0/5) · KL 0 · length 11.5"
        " · finished 100 %",
        "align  5/5  sample: today we saw | this play .",
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
    display.sample({"prompt": [{"role": "user", "content": "[red]Why?"}], "response": "Because."})
    display.saved(Path("runs/x/checkpoints/00000001"))
    display.note("a [note]")
    display.finished({"reward/total": 0.5})
    display.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in (
        *("ppo [2] · runs/ppo [2]", "align (2 of 2)", "1/4", "6 min left"),
        *("0.7125 (classifier 0.8, kl -0.0875)", "0.875", "1,200 tokens/s", "rollout 62 %", "37.5", "98 %"),
        *("1/4: bleu 0.25", "[red]Why? | Because.", "00000001", "a [note]", "reward/total: 0.5"),
    ):
        assert shown in text, shown
    assert "loss" not in text and "tied" not in text


def test_what_is_measured_shows_where_nothing_is_scored():
    display, stream, _ = plain()
    display.evaluated(
        {"eval/held-out/nll": 1.5, "eval/kl": -0.2, "eval/kl/per_response": 2.0, "eval/length": 3.0}
    )
    assert stream.getvalue() == "  0/0  evaluation: held-out/nll 1.5 · KL 2 · length 3\n"


def test_a_trend_shows_once_the_last_iterations_are_others_than_the_first():
    display, stream, clock = plain()
    display.phase("align", 100)
    for i in range(1, 31):
        clock.now += 2.0
        display.iteration(i, {"reward/total": float(i)})
    lines = stream.getvalue().splitlines()
    assert "trend" not in lines[19] and "trend 5.5 → 15.5" in lines[20] and "trend 5.5 → 25.5" in lines[30]


@pytest.mark.parametrize("took, told", [(0.9, ""), (1.66, " (83 % of it in the reward classifier)")])
def test_a_reward_that_takes_most_of_the_time_is_named(took, told):
    display, stream, _ = plain()
    display.phase("align", 1)
    display.iteration(1, {"time/iteration": 2.0, "time/reward/classifier": took, "groups/tied": 0.75})
    assert stream.getvalue().splitlines()[-1] == f"align  1/1  tied groups 75 %  2.0 s each{told}"


def test_a_long_silence_is_broken_with_what_goes_on():
    display, stream, clock = plain()
    display.stage("reading the data")
    display.phase("align", 2)
    display.stage("rollout")
    display.piece("token", 12, 64)
    clock.now = 29.0
    display.break_silence()
    clock.now = 31.0
    display.break_silence()
    display.break_silence()
    clock.now = 70.0
    display.piece("part", 1, 1)
    display.break_silence()
    display.close()
    assert stream.getvalue().splitlines() == [
        "reading the data …",
        "align: 2 iterations",
        "align  0/2  rollout, token 12 of 64  for 31.0 s",
        "align  0/2  rollout  for 1 min",
    ]


def test_the_thread_that_breaks_silences_ends_with_the_display():
    display, _, _ = plain()
    before = set(threading.enumerate())
    display.stage("reading the data")
    (thread,) = set(threading.enumerate()) - before
    display.close()
    thread.join(3)
    assert not thread.is_alive()


def test_before_a_run_begins_the_panel_is_a_line_and_leaves_nothing():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, _environ={"TERM": "xterm"})
    display = LiveDisplay(console)
    display.stage("reading the data")
    display.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading the data" in text and "╭" not in text and "0/0" not in text
    assert text.rstrip().endswith("\x1b[2K"), "the line is erased"


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
