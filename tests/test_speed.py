"""Sampling stays ahead of transformers' `generate`; the benchmarks of speed run and do what they say."""

from __future__ import annotations

import importlib.util
import json
import queue
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.common import shapes
from benchmarks.common.sampling import generated, open_policy, ours
from benchmarks.common.timing import Span, alternating, compared
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import others, roofline
from benchmarks.gpu import sampling as gpu_sampling
from benchmarks.speed import bench, checkpoints, further, growth, profile, report, scoring, work
from benchmarks.speed.ours import Ours
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlalign.records import logs

AT_LEAST = {"short": ((32, 4, 16, 48), 2.0), "long": ((32, 8, 256, 32), 3.0)}
"""Of the smallest model: (rows, samples of a prompt, tokens of a prompt, new ones), and how many times as many tokens a
processor second as `generate`; some 2.5 on an idle machine, and 4 on a busy one."""
TRIES = 6
"""A busy machine disturbs a measurement; one that is right is enough."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("prompts", AT_LEAST)
def test_sampling_is_ahead_of_generate(models: Path, prompts: str) -> None:
    policy = open_policy(shapes.lay("tiny", models))
    (rows, k, prompt, new), least = AT_LEAST[prompts]
    ways = {"ours": ours(policy, rows, k, prompt, new), "generate": generated(policy, rows, k, prompt, new)}
    sampled, other = ways["ours"](), ways["generate"]()
    assert sampled.actions_NT.shape == (rows, new) and other.shape == (rows, prompt + new)
    assert torch.equal(other[::k, :prompt], torch.stack(list(sampled.inputs))), "the same prompts"
    best = 0.0
    for _ in range(TRIES):
        spent = alternating(ways, rounds=3)
        ratios = [b[0] / a[0] for a, b in zip(spent["ours"], spent["generate"], strict=True)]
        best = max(best, statistics.median(ratios))
        if best >= least:
            return
    raise AssertionError(f"{best:.2f} times as fast as generate at best, {least} is wanted")


def test_prompts_have_the_tokens_that_are_asked_for(models: Path) -> None:
    for shape in ("tiny", "qwen"):  # two families whose own tokenizers would take the place of ours
        folder = shapes.lay(shape, models)
        tokenizer: Any = AutoTokenizer.from_pretrained(shapes.tokenizer_of(folder))
        made = shapes.prompts(folder, 40, 16)
        assert {len(tokenizer(text)["input_ids"]) for text in made} == {16}
        assert len(set(made)) == 40
    assert shapes.prompts(folder, 2, 3)[0] == "w3 w4 w5"


@pytest.mark.parametrize("shape", ["tiny", "qwen"])
def test_ends_come_after_as_many_tokens_as_is_said(models: Path, shape: str) -> None:
    auto: Any = AutoModelForCausalLM
    network = auto.from_pretrained(shapes.lay(shape, models, ends_after=15.0))
    ids = torch.randint(shapes.FIRST, 900, (16, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        probs = network(input_ids=ids).logits.softmax(-1)[..., shapes.END]
    assert float(probs.mean()) == pytest.approx(1 / 15, rel=0.05)
    assert float(probs.std()) < 0.04


def test_rows_are_those_that_can_be_compared() -> None:
    every = work.rows(work.MODELS, work.ALGORITHMS, list(work.SCENARIOS), work.DTYPES)
    names = [row.name for row in every]
    assert names[0] == "tiny/rloo/S/float32" and len(set(names)) == len(names)
    assert all(work.row_of(row.name) == row and row.responses == 32 for row in every)
    assert {n.split("/")[2] for n in names if "/ppo/" in n or "/dpo/" in n} == {"S", "L"}
    told = [row.name for row in every if row.tells()]
    assert "gpt2/ppo/S/float32" in told and "gpt2/ppo/L/float32" in names and "gpt2/ppo/L/float32" not in told
    assert work.row_of("gpt2/rloo/L/float32").steps == (1, 3)
    assert "tiny/rloo/V/float32" in names and "real/rloo/V/float32" not in names
    with pytest.raises(SystemExit, match="MODEL=FOLDER"):
        work.folder_of(work.row_of("real/rloo/S/float32"), Path(), None)


@pytest.mark.parametrize("algorithm", work.ALGORITHMS)
def test_our_side_is_a_run_that_does_the_rows_work(models: Path, tmp_path: Path, algorithm: str) -> None:
    row = work.Row("tiny", algorithm, "S", "float32")
    side = Ours(row, shapes.lay("tiny", models), tmp_path, 2)
    side.step()
    side.step()
    (path,) = tmp_path.glob("ours/runs/*/metrics.jsonl")
    lines = list(logs.read(path))
    tokens = 32 * (49 if algorithm == "dpo" else 48)  # what is logged has its end
    assert [(line["responses"], line["tokens"]) for line in lines] == [(32, tokens)] * 2
    assert lines[0]["optimiser_steps"] == (work.EPOCHS if algorithm == "ppo" else 1)
    assert len(side.steps) == 2 and all(cpu > 0 and wall > 0 for cpu, wall in side.steps)
    assert all((cpu > 0) == (algorithm != "dpo") for cpu, _ in side.rollouts)


def test_lengths_of_the_mixed_scenario(models: Path, tmp_path: Path) -> None:
    row = work.Row("tiny", "rloo", "V", "float32")
    side = Ours(row, work.folder_of(row, models, None), tmp_path, 1)
    side.step()
    (path,) = tmp_path.glob("ours/runs/*/metrics.jsonl")
    (line,) = logs.read(path)
    assert 9 < line["length"] < 21
    prompts, _ = work.texts(shapes.lay("tiny", models), 40, 16, 48, mixed=True)
    assert {len(text.split()) for text in prompts} == set(range(8, 17))


def test_ratios_are_of_one_round() -> None:
    found = compared([(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)], [(2.0, 2.0), (6.0, 2.0), (4.0, 2.0)])
    assert found["cpu"]["ratio"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert found["wall"]["ratio"]["median"] == 1.0
    span = Span(lambda x: x + 1)
    assert span(1) == 2 and span.taken()[1] > 0 and span.taken() == (0.0, 0.0)


def one(ratio: float) -> dict[str, Any]:
    clock = {
        "ours": {"median": 0.1, "least": 0.1, "most": 0.1},
        "other": {"median": 0.1 * ratio, "least": 0.1, "most": 0.9},
        "ratio": {"median": ratio, "least": 1.0, "most": 9.0},
    }
    both = {"cpu": clock, "wall": clock}
    return {"step": both, "rollout": both, "n": 15, "warm_up": 3, "load": [0.2, 0.4]}


def test_tables_say_what_missed_its_aim() -> None:
    rows = {"tiny/rloo/S/float32": one(3.6), "qwen/rloo/S/float32": one(2.5), "tiny/rloo/V/float32": one(4.9)}
    rows["tiny/ppo/S/float32"] = {"failed": "RuntimeError: no TRL"}
    _, tiny, qwen, mixed = report.beside_trl({"rows": rows})
    assert (tiny[4:7], tiny[8]) == (["0.100", "0.360", "3.60 [1.00, 9.00]"], "3.5")
    assert qwen[6].startswith("**2.50**") and mixed[9].startswith("**4.90**") and mixed[8] == ""
    assert report.short({"rows": rows})[1] == (report.LABELS["tiny"], "3.60", "", "", "")
    half = {**rows, "tiny/rloo/S/bfloat16": one(4.5)}
    assert report.short({"rows": half})[1] == (report.LABELS["tiny"], "3.60", "", "", "", "4.50")
    sides = {"gpt2/rloo/S/float32/ours": {"peak_gb": 2.0}, "gpt2/rloo/S/float32/trl": {"peak_gb": 5.0}}
    assert report.memory({"memory": sides})[1][1:] == ("2.00", "5.00", "0.40")
    assert len(report.tables({"rows": rows, "memory": sides})) == 3
    assert report.aim("tiny/dpo/S/bfloat16") is None and report.aim("tiny/rloo/L/float32") == 4


def test_a_page_has_one_sentence_where_nothing_is_measured_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a table once something is, either made of the other."""
    spec = importlib.util.spec_from_file_location("tables", report.RESULTS.parents[1] / "docs/tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    page = "<!-- measured: speed, short -->\n\n| old | table |\n|---|---|\n\nafter\n"
    nothing = tables.filled(page)
    assert nothing == f"<!-- measured: speed, short -->\n\n{tables.NOTHING}\n\nafter\n"
    assert tables.filled(nothing) == nothing
    rows = {"rows": {"tiny/rloo/S/float32": one(3.6)}}
    (tmp_path / "speed-2026-01-01.json").write_text(json.dumps(rows))
    filled = tables.filled(nothing)
    assert "| 3.60 |" in filled and tables.NOTHING not in filled and tables.filled(filled) == filled
    (tmp_path / "speed-2026-01-01.json").unlink()
    assert tables.filled(filled) == nothing


def test_what_is_measured_is_written_at_once_and_not_measured_again(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("busy")

    results = bench.Results(tmp_path / "speed.json", again=False)
    results.take("rows", "a", lambda: {"n": 1})
    results.take("rows", "b", fails)
    again = bench.Results(tmp_path / "speed.json", again=False)
    assert again.data["rows"]["a"]["n"] == 1 and again.data["rows"]["a"]["about"]["rlalign"]
    assert again.data["rows"]["b"]["failed"] == "RuntimeError: busy"
    again.take("rows", "a", fails)
    again.take("rows", "b", lambda: {"n": 2})
    assert [again.data["rows"][x]["n"] for x in "ab"] == [1, 2]


def test_where_a_steps_time_goes(models: Path, tmp_path: Path) -> None:
    x, batch = torch.ones(3, 5), torch.ones(4, 3, 5)
    with torch.profiler.profile(record_shapes=True) as seen:
        torch.addmm(torch.ones(3, 7), x, torch.ones(5, 7))
        torch.ones(3, 3).addmm_(x, x.T)
        torch.bmm(batch, batch.mT)
        x @ x.T
    products = 3 * 5 * 7 + 3 * 5 * 3 + 4 * 3 * 5 * 3 + 3 * 5 * 3
    assert profile.operations(seen.key_averages(group_by_input_shape=True)) == 2 * products
    row = work.row_of("tiny/rloo/S/float32")
    found = profile.profiled(Ours(row, shapes.lay("tiny", models), tmp_path, 4), torch.float32, 1)
    weights = 2 * 12 * 128 * 128 + 1000 * 128
    # A forward pass over each response: it is sampled, read by the reference, and learned, which is three.
    responses = 32 * 48 * 2 * weights
    assert 5 * responses < found["operations"] < 6 * responses
    assert 0 < found["products"] < found["step"] * 2 and found["attention"] > 0 < found["other"]
    (_, line) = report.profile({"profile": {row.name: found}, "rows": {row.name: one(3.0)}})
    assert line[0] == f"`{row.name}`" and float(line[-1]) > 1


def test_what_a_checkpoint_takes(models: Path, tmp_path: Path) -> None:
    row = work.row_of("tiny/rloo/S/float32")
    found = checkpoints.measured(Ours(row, shapes.lay("tiny", models), tmp_path, 4), 1)
    weights = 2 * 12 * 128 * 128 + (1000 + 1024) * 128
    assert found["bytes"] > 3 * 4 * weights, "the model and AdamW's two moments"
    share, step = found["checkpoint"]["cpu"]["median"], found["step"]["cpu"]["ours"]["median"]
    assert found["share"]["median"] == pytest.approx(share / (share + step))
    assert 0 < found["stands still"]["median"] <= found["checkpoint"]["wall"]["median"]
    found["load"] = [1.0, 2.0]
    (_, line) = report.checkpoints({"checkpoints": {row.name: found}})
    assert line[0] == f"`{row.name}`" and line[4] == "" and line[-1] == "2.0"
    late = {**found, "share": {"median": 0.06, "least": 0.05, "most": 0.07}}
    (_, line) = report.checkpoints({"checkpoints": {"real/rloo/S/float32": late}})
    assert line[3:5] == ["**6.0%** [5.0%, 7.0%]", "5%"]


@pytest.mark.slow
def test_a_reward_inline_isolated_and_in_a_thread(models: Path, tmp_path: Path) -> None:
    found = scoring.processes(tmp_path / "a", models, 2, 1)
    assert found["served"] > 0 and found["reward over sampling"]["median"] > 0
    found["thread"] = scoring.thread(tmp_path / "b", models, 2, 1)
    assert set(found["thread"]["wall"]) == {"alone", "after", "meanwhile"}
    lines = report.scoring({"scoring": {"all": {"references": {"2": found}, "n": 1}}})
    assert [line[0] for line in lines[1:]] == ["2"]


def test_how_cost_grows(tmp_path: Path) -> None:
    axes = {"batch": growth.axis("batch", (1, 4), 1), "vocabulary": growth.axis("vocabulary", (50, 100), 1)}
    assert all(speed > 0 for axis in axes.values() for speed in axis["tokens/s"])
    assert growth.knee("batch", (1, 2, 4, 8), (10, 19, 35, 39)) == 4
    assert growth.knee("length", (16, 32, 64), (10, 8, 4)) == 64
    assert growth.knee("length", (16, 32), (10, 8)) is None
    assert growth.knee("samples", (1, 2, 4), (1, 95, 100)) == 2
    pytest.importorskip("matplotlib")
    assert growth.draw(axes, tmp_path / "growth.svg").read_text().startswith("<?xml")
    assert report.growth({"growth": {"all": {"axes": axes}}})[1][0] == "batch"


@pytest.mark.slow
def test_what_has_no_counterpart_in_trl(models: Path, tmp_path: Path) -> None:
    pairs = [further.a_lol(models, tmp_path / "a", 1), further.encoder_decoder(models, tmp_path / "b", 1)]
    pairs.append(further.nlpo("tiny", 1))
    lines = report.further({"further": {"all": {"pairs": pairs}}})
    assert [line[1] for line in lines[1:]] == ["SFT", "PPO, GPT-2, 2 × 128", "sampling"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dpo"])
def test_beside_trl(models: Path, tmp_path: Path, algorithm: str) -> None:
    """Only where TRL is installed, as `make bench-speed` does in an environment of its own."""
    if find_spec("trl") is None:
        pytest.skip("trl is not installed")
    from benchmarks.speed import measure, parity

    row = work.Row("tiny", algorithm, "S", "float32")
    folder = shapes.lay("tiny", models)
    found = parity.parity(row, folder, tmp_path)
    assert found["far"] < 1e-4 and found["ours"] == found["trl"]
    timed = measure.both(row, folder, tmp_path / "both", 1, 2)
    assert timed["n"] == 2 and timed["step"]["cpu"]["ratio"]["least"] > 0


# -- benchmarks/gpu --------------------------------------------------------------------------------


def test_the_floor_is_that_of_the_formulas() -> None:
    """GPT-2 in half precision on a card of 4.8 TB/s, 512 tokens before each: 0.31 ms at 64 rows, 1.08 ms at 256."""
    card = roofline.Rates(bytes=4.8e12, flops=790e12)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        gpt2 = roofline.sizes(auto.from_config(shapes.config_of("gpt2")))
        large = roofline.sizes(auto.from_config(shapes.config_of("qwen-7b")))
    assert 1e3 * roofline.step_seconds(gpt2, 64, 512, card) == pytest.approx(0.31, abs=0.005)
    assert 1e3 * roofline.step_seconds(gpt2, 256, 512, card) == pytest.approx(1.08, abs=0.01)
    assert 1e3 * roofline.step_seconds(large, 64, 512, card) == pytest.approx(3.35, abs=0.03)
    assert 1e3 * roofline.step_seconds(large, 512, 512, card) == pytest.approx(9.30, abs=0.06)  # arithmetic
    assert large.trained - large.read == 152064 * 3584
    rollout = roofline.rollout_seconds(gpt2, 64, 8, 448, 128, card)
    assert rollout == pytest.approx(128 * roofline.step_seconds(gpt2, 64, 511.5, card), rel=0.05)
    assert roofline.train_seconds(gpt2, 1000, card) == pytest.approx(6e3 * gpt2.trained / 790e12)
    # Without prompts there is nothing to share; with them no prompt is read twice, and none has a head.
    alone = roofline.least_train_seconds(gpt2, 10, 8, 0, 100, card)
    assert alone == pytest.approx(roofline.train_seconds(gpt2, 8000, card))
    shared = roofline.least_train_seconds(gpt2, 10, 8, 100, 100, card) - alone
    assert shared == pytest.approx(6e3 * (gpt2.trained - 50257 * 768) / 790e12)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_tiny_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    parts = ["sampling", "training", "runs", "sharding", "profile"]
    said = ["gpu", "--self-test", "--device", "cpu", "--only", *parts, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", said)
    gpu_bench.main()
    found = json.loads(out.read_text())
    assert set(found["sampling"]) == {"tiny/8", "tiny/4"} and set(found["runs"]) == {
        "tiny/nlpo",
        "tiny/ppo",
        "tiny/dpo",
    }
    ways = found["sampling"]["tiny/8"]["ways"]
    assert all(ways[name]["tokens/s"] > 0 for name in ("ours", "transformers' forward", "generate"))
    assert "step" in found["sampling"]["tiny/8"]["ours is"]
    assert ways["generate_batch"] == {"left out": "it is no engine for a CPU"}
    assert statistics.median(found["rates"].values()) > 0
    learned = found["training"]["tiny/rloo"]
    assert learned["tokens"] == 4 * 2 * 14
    assert 0 < learned["share of what must be computed"] < learned["share of the card's rate in the update"]
    assert [line[0] for line in report.gpu_sampling(found)[1:]] == ["tiny, 8", "tiny, 4"]
    assert [line[0] for line in report.gpu_iterations(found)[1:]] == [
        "tiny, rloo",
        "tiny, nlpo",
        "tiny, ppo",
        "tiny, dpo",
    ]
    assert found["profile"]["tiny/rloo"]["rollout"]["top"]
    cut = found["sharding"]["tiny"]
    assert [cut[name]["weights are cut"] for name in ("whole", "cut")] == [False, True]
    assert cut["times as long"] > 0
    assert "update at" in capsys.readouterr().out


def test_continuous_batching_may_share_prompts_and_has_to_do_all_its_work() -> None:
    """`generate_batch` only logs that it failed: what came of it is looked at."""
    asked: dict[str, Any] = {}
    given = [7, 6]

    def generate_batch(ids: list[list[int]], *, generation_config: Any, progress_bar: bool) -> dict[str, Any]:
        asked.update(ids=ids)
        return {str(i): SimpleNamespace(generated_tokens=[5] * given[i % len(given)]) for i in range(8)}

    network = SimpleNamespace(generate_batch=generate_batch, config=SimpleNamespace(vocab_size=1000))
    policy = SimpleNamespace(network=network)
    with pytest.raises(RuntimeError, match="52 of 56 tokens"):
        gpu_sampling.continuous(policy, 8, 4, 16, 7)()
    given[1] = 7
    assert len(gpu_sampling.continuous(policy, 8, 4, 16, 7)()) == 8
    first, *others = asked["ids"]
    assert [row == first for row in others] == [True] * 3 + [False] * 4, "each prompt once for each response"


def test_a_way_that_hangs_is_broken_off() -> None:
    with pytest.raises(TimeoutError, match=r"not over after 0\.1 s"), gpu_sampling.at_most(0.1):
        queue.Queue().get()


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    made = gpu_bench.Bench("cpu", gpu_bench.SMALL, ("tiny",), tmp_path)
    found = gpu_bench.run(made, ["tests", "suites"], 0.1, tmp_path / "gpu.json")
    assert set(found["left out"]) == {"tests gpu", "suites grue_toy", "suites grue_small"}
    late = others.told([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], 1.0)
    assert late["ended"] == "cut off after 1 s" and late["tail"] == ["1"]
    assert others.told([sys.executable, "-c", "print('2 passed')"], 20)["ended"] == "0"
