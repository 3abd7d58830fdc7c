"""A run's folder, read once and while it grows."""

from __future__ import annotations

import json
import os

from rlalign.records.writer import hold
from rlalign_report.follow import Log
from rlalign_report.run import Run
from rlalign_report.samples import Samples, Shown

from .written import append, evaluation, iteration, sample, whole, written


def test_a_log_is_read_on_from_where_it_was_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    assert list(log.more()) == [] and not log.begins_anew()
    append(path, [{"a": 1}, {"a": 2}])
    assert [line.row for line in log.more()] == [{"a": 1}, {"a": 2}]
    with path.open("a") as file:
        file.write('{"a": 3')
    assert list(log.more()) == []  # it is still being written
    with path.open("a") as file:
        file.write("}\n")
    assert [line.row for line in log.more()] == [{"a": 3}] and not log.begins_anew()


def test_a_log_that_was_cut_back_begins_anew_although_it_is_longer_by_now(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, [{"a": 1}, {"a": 2}, {"a": 3}])
    log = Log(path)
    assert len(list(log.more())) == 3
    path.write_text("".join(json.dumps({"a": a}) + "\n" for a in (1, 2, 7, 8)))
    assert log.begins_anew()
    assert [line.row["a"] for line in log.more()] == [1, 2, 7, 8]
    assert not log.begins_anew()


def test_a_damaged_line_is_left_out_and_told(tmp_path):
    folder = written(tmp_path / "run", [iteration(1)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{what is this\n")
    append(folder / "metrics.jsonl", [iteration(2)])
    run = Run(folder)
    run.look()
    assert len(run.training.rows) == 2
    assert run.notes == ["metrics.jsonl: 1 lines cannot be read and are left out"]


def test_a_run_from_before_it_begins_until_after_it_was_killed(tmp_path):
    folder = tmp_path / "run"
    run = Run(folder)
    assert run.look() and run.state == "waiting" and not run.look()
    written(folder, [evaluation(0)], finished=False)
    held, _ = hold(folder)
    assert run.look() and run.state == "running" and len(run.evaluations.rows) == 1
    assert not run.look()
    append(folder / "metrics.jsonl", [iteration(1), iteration(2)])
    assert run.look() and len(run.training.rows) == 2
    os.close(held)  # as the process ends, however it ends
    assert run.look() and run.state == "stopped"
    (folder / "metrics.jsonl").write_text("")  # resumed: cut back to a checkpoint
    append(folder / "metrics.jsonl", [evaluation(0), iteration(1)])
    held, _ = hold(folder)
    assert run.look() and run.state == "running" and len(run.training.rows) == 1
    os.close(held)
    (folder / "model").mkdir()
    assert run.look() and run.state == "finished"


def test_places_count_over_the_whole_run(tmp_path):
    rows = [
        {**iteration(1), "phase": "warm"},
        {**iteration(2), "phase": "warm"},
        {**evaluation(0), "phase": "align"},
        {**iteration(1), "phase": "align", "step": 3},
    ]
    run = Run(written(tmp_path / "run", rows))
    run.look()
    assert run.phases == [("warm", 0), ("align", 2)]
    assert run.training.places[-1] == (
        3.0,
        3.0,
        300.0,
        7.0,
    )  # two of training, one of an evaluation, two more
    assert run.evaluations.places == [(2.0, 0.0, 200.0, 5.0)]


def test_a_folder_that_leads_elsewhere_is_told_and_not_read(tmp_path):
    folder = written(tmp_path / "run", whole())
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "secret.jsonl").write_text(json.dumps(iteration(1)) + "\n")
    (folder / "metrics.jsonl").symlink_to(tmp_path / "secret.jsonl")
    run = Run(folder)
    run.look()
    assert run.training.rows == [] and "is a link" in run.notes[0]


def test_why_a_run_is_inexact(tmp_path):
    folder = written(tmp_path / "run", whole())
    append(
        folder / "inexact.jsonl",
        [{"checkpoint": 3, "changed": ["torch: 1 then, 2 now"], "lost": [], "said": []}],
    )
    run = Run(folder)
    run.look()
    assert run.notes == ["inexact (changed): torch: 1 then, 2 now"]


# -- samples ----------------------------------------------------------------------------------------------


def shown(tmp_path, rows, budget=10**6):
    append(tmp_path / "samples.jsonl", rows)
    samples = Samples(tmp_path / "samples.jsonl")
    samples.look()
    return Shown(samples, budget)


def test_of_many_samples_some_are_shown_and_it_is_said(tmp_path):
    rows = [sample(n, f"p{i}", "x" * 9000) for n in range(100) for i in range(40)]
    found = shown(tmp_path, rows, budget=10**6)
    at = [name[2] for name, _ in found.evaluations]
    assert at[0] == 0 and at[-1] == 99 and len(at) == 3
    assert {len(rows) for _, rows in found.evaluations} == {32}
    assert found.left_out == (
        "3 of 100 evaluations are shown, evenly chosen; of each evaluation the first 32 samples; "
        "of 96 long texts the first 4,000 characters"
    )
    assert len(found.prompts) == 32


def test_all_of_few_samples_are_shown(tmp_path):
    found = shown(tmp_path, [sample(n, "p", "a b") for n in range(3)])
    assert found.left_out == "" and len(found.evaluations) == 3 and found.parts == ["rhymes"]


def test_before_and_after_are_of_one_prompt(tmp_path):
    first = [sample(0, f"p{i}", f"before {i}") for i in range(3)]
    last = [sample(9, f"p{i}", f"after {i}") for i in (2, 1)]
    pairs = shown(tmp_path, [*first, *last]).pairs()
    assert [(a["response"], b["response"]) for a, b in pairs] == [
        ("before 1", "after 1"),
        ("before 2", "after 2"),
    ]


def test_odd_rows_are_shown_as_far_as_they_go(tmp_path):
    talk = [
        {"role": "assistant", "content": "4", "reward": -0.5, "cut": True, "answer": [{"content": "no"}]},
        "?",
    ]
    rows = [
        sample(0, [{"role": "user", "content": "hi"}, 7], "x", transcript=talk),
        {"phase": "align", "repeat": 0, "iteration": 0, "prompt": None, "response": 5, "scores": "none"},
    ]
    ((_, (one, other)),) = shown(tmp_path, rows).evaluations
    assert one["transcript"] == [
        {"role": "assistant", "content": "4", "reward": -0.5, "cut": True, "answer": "no"},
        {"role": "", "content": "?"},
    ]
    assert other["response"] == "5" and other["scores"] == {}


def test_what_was_learned_from_is_read_while_it_grows(tmp_path):
    folder = written(tmp_path / "run", whole(10), [sample(0, "p", "a")])
    run = Run(folder)
    assert run.look() and not run.look() and run.learned.evaluations == []
    append(folder / "learned.jsonl", [sample(10, "p", "a b", group=0, reward=1.5, advantage="nan", age=2)])
    assert run.look() and not run.look()
    found = Shown(run.learned)
    ((name, (row,)),) = found.evaluations
    assert name == ("align", 0, 10) and row["group"] == 0 and row["age"] == 2
    assert list(row["scores"].items()) == [("total", 1.5), ("rhymes", 0.5)]
    assert "advantage" not in row and found.steps == []
    with (folder / "learned.jsonl").open("a") as file:
        file.write("{what is this\n")
    assert run.look() and run.notes == ["learned.jsonl: 1 lines cannot be read and are left out"]


def test_tokens_can_be_tinted_by_what_any_part_of_a_row_says(tmp_path):
    talk = [
        {"role": "assistant", "content": "4", "tokens": ["4"], "steps": {"advantage": [1.0], "kl": [None]}}
    ]
    rows = [
        sample(0, "p", "x", tokens=["x"], steps={"odd": [0.5], "wrong": [1.0, 2.0], "words": ["no"]}),
        sample(0, "p", "4", transcript=talk),
    ]
    found = shown(tmp_path, rows)
    assert found.steps == ["advantage", "odd", "kl"]
    ((_, (_, episode)),) = found.evaluations
    assert episode["transcript"][0]["steps"] == {"advantage": [1.0], "kl": [None]}


def test_only_what_other_prompts_got_too_repeats(tmp_path):
    rows = [sample(0, "one", "same words"), sample(0, "one", "same words"), sample(0, "two", "other words")]
    rows += [sample(1, prompt, "same words") for prompt in ("one", "two")] + [sample(1, "two", "word")]
    append(tmp_path / "samples.jsonl", rows)
    samples = Samples(tmp_path / "samples.jsonl")
    samples.look()
    assert [samples.repeated(one) for one in samples.evaluations] == [(3, 0), (2, 2)]
