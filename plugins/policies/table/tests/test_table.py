"""A table is small enough to be worked out by hand, and so it is."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlalign import ConfigError, Example, RLAlignError, Rollout, Sampling
from rlalign.testing import Bench, PolicyTests
from rlalign_plugin_table import Table, TableValue

STATES = ("prompt", "step", "previous")
HOW: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.5}, {"min_new_tokens": 2}, {"top_k": 2})


def table(**options: Any) -> Table:
    policy = Table(Table.Config(**{"actions": ("a", "b", "stop"), "steps": 4, "end": "stop", **options}))
    policy.setup()
    generator = torch.Generator().manual_seed(0)
    policy.double().table.data.copy_(torch.randn(policy.table.shape, generator=generator))
    return policy


def test_a_choice_that_is_no_action_is_named() -> None:
    with pytest.raises(RLAlignError, match=r"the environment allows `c`, .* the table's actions a, b, stop"):
        table().words(["a b", "a c"])


def sampled(policy: Table, prompts: tuple[str, ...] = ("x", "y"), k: int = 30, **how: Any) -> Rollout:
    examples = [Example(id=p, prompt=p) for p in prompts]
    uniforms = torch.rand(len(examples), k, 4, generator=torch.Generator().manual_seed(1))
    return policy.sample(examples, Sampling(samples=k, max_new_tokens=4, **how), uniforms)


def state(kind: str, prompt: int, step: int, actions: list[int]) -> int:
    """Row of the table, written out."""
    if kind == "prompt":
        return prompt
    if kind == "step":
        return prompt * 5 + step  # four steps, and the state after the last
    return prompt * 4 + (
        actions[step - 1] + 1 if step else 0
    )  # before the first action, or after one of three


@pytest.mark.parametrize("kind", STATES)
def test_every_step_reads_its_states_row(kind: str) -> None:
    policy = table(state=kind, prompts=("x", "y"))
    rollout = sampled(policy)
    expected, final = [], []
    for i, length in enumerate(rollout.length_N.tolist()):
        prompt, actions = int(rollout.group_N[i]), rollout.actions_NT[i].tolist()
        expected += [state(kind, prompt, t, actions) for t in range(length)]
        final.append(state(kind, prompt, length, actions))
    assert policy.states == {"prompt": 2, "step": 10, "previous": 8}[kind]
    assert policy.states_of(rollout).tolist() == expected
    assert policy.states_of(rollout, last=True).tolist() == expected + final
    assert torch.equal(policy.head(policy.features(rollout)), policy.table[torch.tensor(expected)])
    assert torch.equal(policy.features(rollout, last=True)[-60:], policy.table[torch.tensor(final)])


@pytest.mark.parametrize("kind, how", list(product(STATES, HOW)))
def test_sampling_and_scoring_agree(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    """The decoder's log-probs are those of features and head, however sampled."""
    bench = _bench(tmp_path, {"state": kind, "prompts": ["0", "1"]})
    policy = bench.engine.models["policy"]
    policy.table.data.copy_(torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(0)))
    rollout = sampled(policy, ("0", "1"), **how)
    scored = bench.engine.score("policy", rollout, ["logprobs", "full_logprobs"])
    at = rollout.mask_NT
    torch.testing.assert_close(scored.logprobs_NT[at], rollout.logprobs_NT[at], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        scored.full_logprobs_NT[at], rollout.full_logprobs_NT[at], rtol=1e-13, atol=1e-14
    )
    if "min_new_tokens" in how:
        assert int(rollout.length_N.min()) >= 2


def _bench(folder: Path, options: dict[str, Any]) -> Bench:
    pipeline = {
        "task": {"numbers": {"size": 4, "prompts": 2}},
        "policy": {"table": {"actions": ["a", "b", "stop"], "steps": 4, "end": "stop", **options}},
        "rewards": ["length"],
        "algorithm": "rloo",
        "generation": {"samples": 3, "max_new_tokens": 4},
        "train": {"iterations": 2, "prompts": 4, "dtype": "float64", "lr": 0.1},
    }
    return Bench(folder, pipeline)


def test_probabilities_by_hand() -> None:
    policy = table(state="previous", prompts=("x",))
    rollout = sampled(policy, ("x",))
    for i, text in enumerate(rollout.texts):
        row, total = 0, 0.0
        names = [*text.split(), "stop"] if rollout.finished_N[i] else text.split()
        for name in names:
            action = ("a", "b", "stop").index(name)
            total += float(policy.table[row].detach().log_softmax(0)[action])
            row = action + 1
        assert float(rollout.logprobs_NT[i].sum()) == pytest.approx(total, rel=1e-13)


@pytest.mark.parametrize("end", ["stop", None])
def test_text_encodes_to_what_was_sampled(end: str | None) -> None:
    policy = table(end=end, state="step")
    rollout = sampled(policy)
    logged = [
        Example(
            id=str(g),
            prompt=example.prompt,
            responses=tuple(rollout.texts[30 * g : 30 * g + 30]),
            finished=tuple(rollout.finished_N[30 * g : 30 * g + 30].tolist()),
        )
        for g, example in enumerate(rollout.examples)
    ]
    again = policy.encode(logged)
    for name in ("actions_NT", "mask_NT", "finished_N", "group_N"):
        mine, theirs = (
            torch.where(r.mask_NT, r.actions_NT, 0) if name == "actions_NT" else getattr(r, name)
            for r in (rollout, again)
        )
        assert torch.equal(mine, theirs), name
    assert again.texts == rollout.texts
    assert bool(again.logprobs_NT[again.mask_NT].isnan().all())
    if end is None:
        assert rollout.length_N.tolist() == [4] * 60 and bool(rollout.finished_N.all())
        assert "stop" in " ".join(rollout.texts).split()
    else:
        assert not bool(rollout.finished_N.all()) and int(rollout.length_N.min()) < 4


def test_a_logged_response_ends_unless_it_says_otherwise() -> None:
    policy = table()
    example = Example(id="1", prompt="x", responses=("a b", "a b", ""), finished=(True, False, True))
    assert policy.encode([example]).length_N.tolist() == [3, 2, 1]
    assert policy.encode([Example(id="2", prompt="x", responses=("b",))]).actions_NT.tolist() == [[1, 2]]
    assert policy.encode([]).actions_NT.shape == (0, 0)


def test_bad_responses_and_prompts_are_named() -> None:
    policy = table(prompts=("x",))
    with pytest.raises(RLAlignError, match="example `7`: `c` is not among the actions a, b, stop"):
        policy.encode([Example(id="7", prompt="x", responses=("a c",))])
    with pytest.raises(RLAlignError, match="example `7`: a response of 5 actions; the table has 4 steps"):
        policy.encode([Example(id="7", prompt="x", responses=("a a a a",))])
    with pytest.raises(RLAlignError, match="example `8`: the table has no prompt 'z'; add it to `prompts`"):
        policy.prompts([Example(id="8", prompt="z")])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"end": "halt"}, "`halt` is not among the actions a, b, stop"),
        ({"actions": ("a", "go left"), "end": None}, "`go left` is not one word"),
        ({"actions": ("a", "a"), "end": None}, "`a` is named twice"),
        ({"prompts": ("x", "x")}, "`x` is named twice"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Table.Config(**{"actions": ("a", "b", "stop"), "steps": 4, "end": "stop", **options})


@pytest.mark.parametrize("kind", STATES)
def test_a_value_has_one_number_a_state(kind: str) -> None:
    policy = table(state=kind, prompts=("x", "y"))
    value = policy.copy("value")
    assert isinstance(value, TableValue)
    assert not list(value.table.nonzero())
    assert value.table.dtype == torch.float64
    assert [name for name, _ in value.named_parameters()] == ["table"]  # the policy is no part of it
    value.table.data.copy_(torch.arange(policy.states))
    rollout = sampled(policy)
    assert torch.equal(value.values(rollout).long(), policy.states_of(rollout))
    assert torch.equal(value.values(rollout, last=True).long(), policy.states_of(rollout, last=True))


def test_values_end_where_responses_do(tmp_path: Path) -> None:
    bench = _bench(tmp_path, {"state": "step"})
    policy = bench.engine.models["policy"]
    value = policy.copy("value")
    value.table.data.copy_(torch.arange(1, policy.states + 1))
    bench.engine.models._models["value"] = value
    rollout = sampled(policy)
    values_NT1 = bench.engine.score("value", rollout, ["state_values"]).state_values_NT1
    assert values_NT1.shape == (60, 5)
    for i, length in enumerate(rollout.length_N.tolist()):
        end = 0.0 if rollout.finished_N[i] else length + 1.0
        assert values_NT1[i].tolist() == [t + 1.0 for t in range(length)] + [end] + [0.0] * (4 - length)


@pytest.mark.parametrize("role", ["frozen", "lagging"])
def test_copies_stay_behind(role: Any) -> None:
    policy = table()
    copy = policy.copy(role)
    assert torch.equal(copy.table, policy.table) and copy.table.dtype == torch.float64
    with torch.no_grad():
        policy.table.add_(1.0)
    assert not torch.equal(copy.table, policy.table)
    version = copy.version
    copy.sync(policy)
    assert torch.equal(copy.table, policy.table) and copy.version == version + 1


def test_the_saved_folder_says_all(tmp_path: Path) -> None:
    policy = table(state="previous", prompts=("x", "y"))
    policy.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("model") == "table"
    again = Table(Table.Config.model_validate_json(json.dumps(config)))
    again.setup()
    again.double().load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.table, policy.table)
    assert again.names == policy.names and again.ends == policy.ends


def test_numbered_actions() -> None:
    policy = Table(Table.Config(actions=3))
    policy.setup()
    assert policy.names == ("0", "1", "2") and policy.ends == () and policy.horizon == 1
    rollout = sampled(policy, ("anything",), k=300)
    assert set(rollout.texts) == {"0", "1", "2"}
    torch.testing.assert_close(rollout.logprobs_NT.exp(), torch.full((300, 1), 1 / 3))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"actions": 10**9}, "less than or equal to 1000000"),
        (
            {"actions": 10**6, "steps": 10**7, "state": "step"},
            "a table of 10,000,001 states × 1,000,000 actions",
        ),
        (
            {"actions": 10**6, "state": "previous"},
            r"needs 14.6 TiB of memory, this machine has .*; lower `actions`",
        ),
    ],
)
def test_a_table_larger_than_the_memory_is_refused(options, why):
    with pytest.raises((ValueError, ConfigError), match=why):
        Table(Table.Config(**options))


def test_groups_are_told_of_as_they_are_in_the_end():
    """Without an ending action all end together, finished; with one, earlier ones are told of first."""
    cases: tuple[tuple[dict[str, Any], bool], ...] = (
        ({"actions": 3, "steps": 4}, False),
        ({"actions": ("a", "end"), "end": "end"}, True),
    )
    for options, several in cases:
        table = Table(Table.Config(**{"steps": 12, **options}))
        table.setup()
        told: list[Rollout] = []
        how = Sampling(samples=2, max_new_tokens=12)
        examples = [Example(f"e{i}", "x") for i in range(16)]
        uniforms = torch.rand(16, 2, table.config.steps, generator=torch.Generator().manual_seed(0))
        whole = table.sample(examples, how, uniforms, finished=told.append)
        assert (len(told) > 1) == several
        for part in told:
            rows = [int(e.id[1:]) * 2 + j for e in part.examples for j in range(2)]
            assert part.finished_N.tolist() == whole.finished_N[rows].tolist()
        assert sum(map(len, told)) == len(whole)


# -- an environment's observations and turns ----------------------------------------------------------------

TURNS = 12
CELLS = [f"{cell}{key}" for key in ("", " key") for cell in range(3)]


def _corridor(folder: Path, **options: Any) -> Bench:
    known = {"actions": ["left", "right"], "prompts": CELLS, "state": ["observation", "turn"], "turns": TURNS}
    pipeline = {
        "task": {"toy-corridor": {"cells": 3, "steps": TURNS}},
        "policy": {"table": {**known, **options}},
        "algorithm": "rloo",
        "generation": {"samples": 4},
        "train": {"iterations": 2, "prompts": 3, "dtype": "float64", "lr": 0.1},
    }
    return Bench(folder, pipeline)


def test_a_state_is_what_was_said_last_and_the_turn(tmp_path: Path) -> None:
    bench = _corridor(tmp_path)
    policy = bench.engine.models["policy"]
    policy.table.data.copy_(torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(0)))
    assert policy.states == len(CELLS) * TURNS
    rollout, _ = bench.rollout(3)
    expected, last = [], []
    for i, transcript in enumerate(rollout.columns["transcript"]):
        said = [rollout.answered[i].prompt, *(turn.say for _, turn in transcript[:-1])]
        rows = [CELLS.index(say) * TURNS + turn for turn, say in enumerate(said)]
        expected += rows
        last.append(rows[-1])
    assert policy.states_of(rollout).tolist() == expected
    assert policy.states_of(rollout, last=True).tolist() == expected + last
    scored = bench.engine.score("policy", rollout, ["logprobs"])  # the decoder sampled from the same rows
    at = rollout.mask_NT
    torch.testing.assert_close(scored.logprobs_NT[at], rollout.logprobs_NT[at], rtol=1e-13, atol=1e-14)


def test_an_episode_of_more_turns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RLAlignError, match="more than 2 turns; raise the table's `turns`"):
        _corridor(tmp_path, turns=2).rollout(3)


def test_turns_are_counted_by_what_is_said(tmp_path: Path) -> None:
    policy = table(state=("observation", "turn"), prompts=("x",), turns=2)
    with pytest.raises(RLAlignError, match="counts them by what is said"):
        policy.given("", True)
    assert policy.given("x", True).tolist() == [3]


@pytest.mark.parametrize("in_a_file", (False, True))
def test_it_begins_with_the_scores_it_is_given(tmp_path: Path, in_a_file: bool) -> None:
    scores: Any = {"1": {"right": 2.0}, "2 key": {"left": -1.0, "right": 0.5}}
    if in_a_file:
        (tmp_path / "scores.json").write_text(json.dumps(scores))
    bench = _corridor(tmp_path, scores="scores.json" if in_a_file else scores)
    found = bench.engine.models["policy"].table.detach().view(len(CELLS), TURNS, 2)
    expected = torch.zeros_like(found)
    expected[1, :, 1], expected[5, :, 0], expected[5, :, 1] = 2.0, -1.0, 0.5
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "scores, said", (({"9": {}}, "no prompt '9'"), ({"1": {"up": 1.0}}, "`up` is not among the actions"))
)
def test_scores_of_what_is_not_there_are_refused(
    tmp_path: Path, scores: dict[str, dict[str, float]], said: str
) -> None:
    with pytest.raises(RLAlignError, match=said):
        _corridor(tmp_path, scores=scores)


class TestTable(PolicyTests):
    component = "table"
    plays = False
    options = {"actions": 10, "steps": 6, "state": "previous", "prompts": ["0", "1", "2", "3", "4", "5"]}


class TestTableOfObservations(PolicyTests):
    component = "table"
    options = {"actions": 10, "steps": 6, "state": "observation", "prompts": ["0", "1", "2", "3", "4", "5"]}


class TestTableWithAnEnd(PolicyTests):
    component = "table"
    plays = False
    options = {
        "actions": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "end"],
        "end": "end",
        "steps": 7,
        "state": "step",
    }
