"""`evolve`: the published toy game, what pays, what is exported, and that TRPO learns it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlalign import ComponentError, ConfigError, Example
from rlalign.records.result import Result
from rlalign.running import loop
from rlalign.testing import Bench, EnvironmentTests, TaskTests, registry, run
from rlalign.testing.bench import Silence, logged, run_until, session
from rlalign_plugin_teams_rl import ACTIONS, Evolve, Evolved, toy
from rlalign_plugin_teams_rl.players import PROMPTS, filled, read_prompts

TOY = {"rewrite": "rlalign_plugin_teams_rl.toy:rewrite", "review": "rlalign_plugin_teams_rl.toy:review"}
INSTRUCTIONS = ("How to cook food?", "Name three primary colours.", "Describe a chair.", "Add two numbers.")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    for name, instructions in (
        ("train", INSTRUCTIONS),
        ("val", ("Write a poem.",)),
        ("others", ("Sort a list.", "Greet me.")),
    ):
        rows = [json.dumps({"instruction": text}) for text in instructions]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def of(seeds: Path, train: str = "train", **options: Any) -> dict[str, Any]:
    """A task over these seeds."""
    data = {
        "path": str(seeds),
        "prompt": "instruction",
        "splits": {"train": f"{train}.jsonl", "val": "val.jsonl"},
    }
    return {"evolve": {"seeds": data, **TOY, **options}}


def pipeline(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "policy": {"table": {"actions": list(ACTIONS), "state": "previous"}},
        "algorithm": {"trpo": {"gamma": 0.995, "lam": 0.97, "delta": 0.01, "damping": 0.1, "cg_steps": 10}},
        "train": {"iterations": 40, "prompts": 64, "lrs": {"value": 0.1}},
        "evaluate": {"every": 40, "examples": 1, "generation": {"samples": 128}},
        **changes,
    }


# -- the published toy: golden `teams_toy` ----------------------------------------------------------------


def expected(probabilities: Sequence[Sequence[float]]) -> float:
    """The reward of six steps of a policy over [last action or none][action], by recursion."""
    value = [0.0] * 7
    for _ in range(6):
        value = [
            sum(p * (chance(last, a) + value[a + 1]) for a, p in enumerate(probabilities[last + 1]))
            for last in range(-1, 6)
        ]
    return value[0]


def chance(last: int, action: int) -> float:
    return toy.chance(ACTIONS[last] if last >= 0 else None, ACTIONS[action])


def greedy(first: int, after_breadth: int) -> list[list[float]]:
    """Breadth after everything but breadth."""
    choice = [first, after_breadth, 0, 0, 0, 0, 0]
    return [[float(a == chosen) for a in range(6)] for chosen in choice]


def test_the_toy_is_the_published_one() -> None:
    assert [[chance(last, a) for a in range(6)] for last in (-1, 0, 5)] == [
        [0.9, 0.5, 0.5, 0.5, 0.5, 0.7],
        [0.05, 0.5, 0.5, 0.5, 0.5, 0.7],
        [0.9, 0.5, 0.5, 0.5, 0.5, 0.05],
    ]
    assert expected([[1 / 6] * 6] * 7) == pytest.approx(3.141666666666667, abs=1e-9)
    assert expected(greedy(first=5, after_breadth=5)) == pytest.approx(4.8, abs=1e-9)
    best = max(
        sum(chance(a, b) for a, b in itertools.pairwise((-1, *path)))
        for path in itertools.product(range(6), repeat=6)
    )
    assert best == pytest.approx(4.8, abs=1e-9)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_trpo_learns_it(seed: int, seeds: Path, tmp_path: Path) -> None:
    """Uniform rewritings make 3.14 differences of 6, the best ones 4.8; pilot: 4.49, 4.65, 4.52."""
    _, ended = run(tmp_path, pipeline(of(seeds), seed=seed))
    assert expected(ended.models.policy.table.softmax(1).tolist()) > 4.4
    evaluations = [row for row in Result(ended.dir.path).evaluations if "eval/played" in row]
    assert evaluations[0]["eval/played"] == pytest.approx(3.14, abs=0.4)
    assert evaluations[-1]["eval/played"] > 4.2
    assert evaluations[0]["eval/evolve/rate/breadth"] == pytest.approx(0.78, abs=0.1)


# -- what every environment must do, and more -----------------------------------------------------------


@pytest.fixture(scope="class")
def written(request: pytest.FixtureRequest, seeds: Path) -> None:
    request.cls.options = of(seeds)["evolve"]
    request.cls.other_options = of(seeds, "others")["evolve"]


@pytest.mark.usefixtures("written")
class TestEvolve(EnvironmentTests):
    component = "evolve"
    splits = ("train", "val")


@pytest.fixture
def evolve(seeds: Path) -> Evolve:
    return Evolve(Evolve.Config.model_validate_json(json.dumps(of(seeds)["evolve"])))


def begun(evolve: Evolve, instruction: str = "Draw a cat.") -> Any:
    return evolve.start(Example("1", instruction), torch.Generator(), torch.Generator().manual_seed(0))[0]


@pytest.mark.parametrize(
    "answer, paid",
    [
        ("Not Equal", 1.0),
        (" Not Equal\n", 1.0),
        ("not equal", 0.0),
        ("Not Equal.", 0.0),
        ("Equal", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_very_answer_pays(answer: str, paid: float, evolve: Evolve) -> None:
    evolve._players["review"] = lambda befores, afters, seeds: [answer] * len(befores)
    turn = begun(evolve).step("deepen")
    assert turn.reward == paid and turn.metrics == {"taken/deepen": 1.0, "differs/deepen": paid}


def test_the_reviewer_sees_this_step_and_the_rewriter_what_it_left(evolve: Evolve) -> None:
    seen: list[tuple[str, str]] = []

    def review(befores: Sequence[str], afters: Sequence[str], seeds: Sequence[int]) -> list[str]:
        seen.extend(zip(befores, afters, strict=True))
        return ["Equal"] * len(befores)

    evolve._players["review"] = review
    one, other = begun(evolve), begun(evolve, "Draw a dog.")
    evolve.step_all([one, other], ["deepen", "breadth"])
    (last,) = evolve.step_all([one], ["breadth"])
    assert seen == [
        ("Draw a cat.", "Draw a cat. [deepen]"),
        ("Draw a dog.", "Draw a dog. [breadth]"),
        ("Draw a cat. [deepen]", "Draw a cat. [deepen] [breadth]"),
    ]
    assert last.say == "Draw a cat. [deepen] [breadth]" and not last.done
    assert begun(evolve).instruction == "Draw a cat."  # a new episode begins where the seed is


def test_six_steps_and_breadth_where_it_is_forced(seeds: Path) -> None:
    task = of(seeds, breadth_at=[2, 5])["evolve"]
    evolve = Evolve(Evolve.Config.model_validate_json(json.dumps(task)))
    chain, turn = evolve.start(Example("1", "x"), torch.Generator(), torch.Generator())
    choices = []
    while not turn.done:
        assert turn.choices is not None
        choices.append(turn.choices)
        turn = chain.step(turn.choices[-1])
    assert [len(each) for each in choices] == [6, 1, 6, 6, 1, 6] and choices[1] == ("breadth",)


def test_an_empty_rewriting_leaves_the_instruction(evolve: Evolve) -> None:
    evolve._players["rewrite"] = lambda actions, instructions, seeds: [" "] * len(actions)
    assert begun(evolve).step("deepen").say == "Draw a cat."


@pytest.mark.parametrize(
    "body, expected",
    [
        ("return instructions[:-1]", "a list of 8 texts, got 7"),
        ("return [None] * len(actions)", "one is None"),
        ("return 'text'", "got a str"),
        ("raise KeyError('gone')", "KeyError: 'gone'"),
    ],
)
def test_a_function_that_does_otherwise_is_named(
    body: str, expected: str, seeds: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(f"def rewrite(actions, instructions):\n    {body}\n")
    task = of(seeds, rewrite=str(tmp_path / "mine.py:rewrite"))
    with pytest.raises(ComponentError, match=r"(?s)evolve.*" + expected):
        run(tmp_path, pipeline(task, train={"iterations": 1, "prompts": 8}, evaluate=None))


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"review": None}, "give `review`"),
        ({"reviewer": "judge"}, "give `review`"),
        ({"prompts": str(PROMPTS)}, "both `rewrite` and `review` are functions"),
        ({"rewrite": "rlalign_plugin_teams_rl.toy:rewrit"}, "did you mean `rewrite`"),
        ({"sampling": {"samples": 2}}, "answers once"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], expected: str, seeds: Path, tmp_path: Path
) -> None:
    task = of(seeds, **options)
    task["evolve"] = {name: value for name, value in task["evolve"].items() if value is not None}
    with pytest.raises(ConfigError, match=expected):
        run(tmp_path, pipeline(task))


# -- two phases, the answers, and what is learned from them ---------------------------------------------------


def two_phases(seeds: Path) -> dict[str, Any]:
    short = pipeline(of(seeds), train={"iterations": 3, "prompts": 4, "lrs": {"value": 0.1}})
    learn = {name: short.pop(name) for name in ("algorithm", "train", "evaluate")}
    learn["evaluate"] = {"every": 2, "examples": 1}
    write = {
        "name": "write",
        "task": of(seeds, "others"),
        "algorithm": "collect",
        "train": {"iterations": 1, "prompts": 2},
    }
    return {**short, "phases": [{"name": "learn", **learn}, write]}


def test_every_step_is_written_answered_and_learned_from(seeds: Path, tmp_path: Path) -> None:
    _, ended = run(tmp_path / "a", two_phases(seeds))
    (file,) = (ended.dir.path / "rows").glob("write-*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {"Sort a list.", "Greet me."}  # none that was learned on
    assert all(all(row["meta"]["rlalign"]["same_tokens"]) for row in rows)
    bench = Bench(tmp_path / "b", expert(file))
    examples = bench.phase.plan.task.examples("train")
    assert len(examples) == 2 * 6  # as many as steps were taken
    for example in examples:
        path = example.meta["path"]
        assert example.prompt == " ".join([example.meta["seed"], *(f"[{action}]" for action in path)])
        assert len(path) == example.meta["depth"] <= 6
    paid = sum(row["scores"][0] for row in rows)
    different = Bench(tmp_path / "c", expert(file, different=True)).phase.plan.task.examples("train")
    assert len(different) == paid == sum(example.meta["different"] for example in examples) < 12

    _, answered = run(tmp_path / "d", expert(file))
    (answers,) = (answered.dir.path / "rows").glob("*.jsonl")
    plain = tmp_path / "answers.jsonl"
    plain.write_text(answers.read_text())
    sft = expert(file)
    sft |= {"task": {"dataset": {"path": str(plain)}}, "algorithm": "sft"}
    sft["train"] = {"iterations": 3, "prompts": 12, "lr": 0.1}
    _, taught = run(tmp_path / "e", sft)
    losses = [
        json.loads(line)["loss"] for line in (taught.dir.path / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("line", ['{"question": "a"}', "no JSON", "[]"])
def test_a_file_of_something_else_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "evolved.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"evolved\.jsonl:1: is no row that"):
        Evolved(Evolved.Config(path=file)).examples("train")


def expert(file: Path, **options: Any) -> dict[str, Any]:
    """Another policy answers all that was written."""
    return {
        "task": {"evolved": {"path": str(file), **options}},
        "policy": "bytes",
        "algorithm": "collect",
        "generation": {"max_new_tokens": 8},
        "train": {"iterations": 1, "prompts": 12},
    }


def test_a_run_that_was_killed_goes_on_to_the_bit(seeds: Path, tmp_path: Path) -> None:
    whole, other = (
        session(tmp_path / "a", two_phases(seeds), {}),
        session(tmp_path / "b", two_phases(seeds), {}, name="broken"),
    )
    whole.run()
    run_until(other, 2)
    again = loop.resume(tmp_path / "b/runs/broken", registry(), display=Silence())
    again.run()
    assert logged(whole.dir.path) == logged(again.dir.path)
    assert torch.equal(whole.models.policy.table, again.models.policy.table)


@pytest.fixture(scope="class")
def exported(request: pytest.FixtureRequest, seeds: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    _, ended = run(tmp_path_factory.mktemp("exported"), two_phases(seeds))
    (file,) = (ended.dir.path / "rows").glob("write-*.jsonl")
    request.cls.options = {"path": str(file)}


@pytest.mark.usefixtures("exported")
class TestEvolved(TaskTests):
    component = "evolved"
    splits = ("train",)


# -- models that play -------------------------------------------------------------------------------------------


def test_frozen_models_play(seeds: Path, tmp_path: Path) -> None:
    """One model in both parts: it is asked the prompts that ship, answers from the episode's noise alone, and stays."""
    options = {"rewriter": "teacher", "reviewer": "teacher", "sampling": {"max_new_tokens": 6}}
    said = Evolve.Config.model_validate(
        {**of(seeds)["evolve"], "sampling": options["sampling"]}, strict=False
    )
    assert (said.sampling.temperature, said.sampling.top_p, said.sampling.top_k) == (1.0, 0.95, 40)
    task = of(seeds, **options)["evolve"]
    task = {"evolve": {name: value for name, value in task.items() if name not in TOY}}
    short = pipeline(task, models={"teacher": {"bytes": {"seed": 3}}}, evaluate=None)
    short["train"] = {"iterations": 2, "prompts": 4, "lrs": {"value": 0.1}}
    bench = Bench(tmp_path / "a", short)
    before = {name: x.clone() for name, x in bench.session.models["teacher"].state_dict().items()}
    rollout, _ = bench.rollout()
    texts = [turn.say for row in rollout.columns["transcript"] for _, turn in row]
    assert len(set(texts)) == len(texts) == 24 and all(len(text) <= 6 for text in texts)
    alone, _ = Bench(tmp_path / "b", short).rollout(2)
    assert list(alone.columns["transcript"]) == list(rollout.columns["transcript"][:2])
    _, ended = run(tmp_path / "c", short)
    after = ended.models["teacher"].state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_a_model_that_nobody_named_does_not_play(seeds: Path, tmp_path: Path) -> None:
    """It would be a copy of the table."""
    task = {"evolve": {"seeds": of(seeds)["evolve"]["seeds"], "rewriter": "teacher", "reviewer": "teacher"}}
    with pytest.raises(ConfigError, match=r"models: \{teacher: "):
        run(tmp_path, pipeline(task))


def test_prompts_are_filled_once() -> None:
    """What stands in an instruction is no place of a prompt."""
    prompts = read_prompts(None)
    assert set(prompts) == {*ACTIONS, "review"}
    asked = filled(prompts["review"], before="Write {after} in C: {}", after="Greet {name}.")
    assert "Write {after} in C: {}" in asked and asked.count("Greet {name}.") == 1


def test_a_prompt_without_its_place_is_refused(tmp_path: Path) -> None:
    said = dict(read_prompts(None)) | {"deepen": "Deepen it."}
    (tmp_path / "prompts.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"`deepen` has no \{instruction\}"):
        read_prompts(tmp_path / "prompts.json")
    (tmp_path / "prompts.json").write_text("{}")
    with pytest.raises(ValueError, match="exactly these keys: breadth"):
        read_prompts(tmp_path / "prompts.json")
