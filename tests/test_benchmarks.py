"""The benchmarks still run, and the work they do is the work they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.rl4lms import bench, curves, measure, models, rows

from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.running.planning import plan_phases

SPEED = ("A", "B", "A-s2s", "B-s2s", "S", "LC")


def test_every_recorded_row_is_there() -> None:
    methods = {f"{work}-{method}" for work in SPEED for method in rows.METHODS}
    assert set(bench.speed_rows()) == {*methods, "A-ppo-1t"}
    assert set(rows.WORKS) == set(SPEED)
    for row in bench.speed_rows():
        name = row.removesuffix("-1t")
        work, was = rows.WORKS[name.rpartition("-")[0]], bench.RECORDED["rows"][row]
        # The record has 10 steps of 16 tokens in S; 8 episodes cannot be cut into more than 8.
        assert was["optimiser_steps"] == work.steps or work is rows.WORKS["S"]
        assert was["rollout_tokens_s"] * was["rollout_s"] == pytest.approx(work.tokens, rel=0.015)
        assert was["train_tokens_s"] * was["train_s"] == pytest.approx(work.tokens * work.epochs, rel=0.015)


@pytest.mark.parametrize("work", SPEED)
@pytest.mark.parametrize("method", rows.METHODS)
def test_the_pipelines_are_valid(tmp_path: Path, work: str, method: str) -> None:
    said = rows.pipeline(rows.WORKS[work], method, tmp_path, iterations=3, seed=1)
    (tmp_path / rows.WORKS[work].model).mkdir()
    registry = Registry(trust=True)
    loaded = load_pipeline(tmp_path / "row.yaml", registry=registry, text=json.dumps(said))
    (plan,), _ = plan_phases(loaded, registry)
    assert plan.trains == ("policy", "value")
    assert plan.settings.train.epochs == rows.WORKS[work].epochs
    options = plan.settings.algorithm[0].options
    assert (options.gamma, options.lam, options.clip, options.value, options.whiten, options.truncated) == (
        *(0.99, 0.95, 0.2, 1.0),
        *("minibatch", "terminal"),
    )


def test_a_prompt_has_as_many_tokens_as_the_row_says(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for work in (work for work in rows.WORKS.values() if work.model != models.TRAINED):
        said = rows.pipeline(work, "ppo", tmp_path, iterations=1)
        tokenizer: Any = AutoTokenizer.from_pretrained(models.lay(work.model, tmp_path))
        tokens = tokenizer(said["task"]["toy-numbers"]["prompt"])["input_ids"]
        assert tokens == [models.FIRST_NUMBER + work.first + i for i in range(work.prompt)]
        assert len(tokenizer) == models.SHAPES[work.model]["vocab_size"]
        assert tokenizer.decode([5, 502, 503]) == "2 499 w0"


def test_the_synthetic_text_is_as_described() -> None:
    ids = models.text(400, 24, torch.Generator().manual_seed(0))
    numbers = (ids >= models.FIRST_NUMBER) & (ids < models.FIRST_NUMBER + models.NUMBERS)
    assert float(numbers.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert int(ids.min()) >= models.FIRST_NUMBER
    assert int(ids.max()) == 999
    both = numbers[:, 1:] & numbers[:, :-1]
    up = (ids[:, 1:] - ids[:, :-1])[both]
    # Half of the numbers go up by 1 to 30; of the uniform ones about 6 % do.
    assert float(((up >= 1) & (up <= 30)).float().mean()) == pytest.approx(0.52, abs=0.03)


@pytest.mark.parametrize("method", rows.METHODS)
def test_a_small_row_gives_sane_figures(tmp_path: Path, method: str) -> None:
    work = replace(rows.WORKS["A"], episodes=4, prompt=3, length=5, minibatches=2, epochs=2)
    models.lay(work.model, tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(rows.pipeline(work, method, tmp_path, iterations=2)))
    found = measure.run(file, tmp_path)
    first, second = found["iterations"]
    assert first["tokens"] == second["tokens"] == work.tokens
    assert first["optimiser_steps"] == work.steps == 4
    assert first["length"] == work.length
    assert first["kl/k1"] == pytest.approx(0, abs=1e-5)  # the policy is the reference
    assert first["kl/coef"] == pytest.approx(0.02)
    figures = bench.summary(found, "passive")
    assert 0 < figures["rollout_s"] + figures["train_s"] <= figures["iteration_s"] < 60
    assert 0.1 < figures["main_gb"] < 20
    ratios = bench.ratios(f"A-{method}", figures)
    assert ratios["train"] == pytest.approx(ratios["step"] * 25)  # four steps instead of a hundred


def test_the_interval_and_what_counts_as_a_miss() -> None:
    mean, half = curves.interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182 * 1.2910 / 2, rel=1e-3)
    recorded = bench.RECORDED["learning"]
    assert curves.final(recorded["ppo-2"]) == pytest.approx(0.857, abs=5e-4)

    def measured(last: tuple[float, ...]) -> dict[str, Any]:
        return {f"ppo-{i}": {curves.REWARD: [0.2] + 5 * [x]} for i, x in enumerate(last)}

    assert "**miss**" in curves.summary(recorded, measured((0.70, 0.72, 0.71)))[2]
    assert "no miss" in curves.summary(recorded, measured((0.70, 0.85, 0.77)))[2]
    assert curves.summary(recorded, {}) == []


def test_the_report_and_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    was = bench.RECORDED["rows"]["A-ppo"]
    row = {**was, "iteration_s": 1.11, "main_gb": 0.5, "others_cores": 0.0}
    learnt = {name: {curves.REWARD: curve} for name, curve in bench.RECORDED["learning"].items()}
    said = bench.report({"rows": {"A-ppo": row}, "learning": learnt})
    assert "| A-ppo | 1.11 | 11.1 | 10.0 | **15** |" in said
    assert "0.793 (0.719 to 0.857) | no miss |" in said
    drawn = curves.draw(bench.RECORDED["learning"], learnt, tmp_path / "curves.svg")
    assert drawn.read_text().startswith("<?xml")
