"""Episodes whose history is rewritten: a row a turn, the same whoever plays beside them, told of by episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from rlalign import ComponentError, ConfigError, Environment, Episode, Example, Rollout, Sampling, Turn
from rlalign.builtin.responses import Played, ToGo
from rlalign.data.batch import Reward
from rlalign.data.rollout import TRANSCRIPT
from rlalign.decoding.logits import steps_outputs
from rlalign.randomness import Seeds
from rlalign.running.bad_episodes import without_bad_episodes
from rlalign.running.evaluation import by_example, compared
from rlalign.running.playing import Playing
from rlalign.running.rewriting import counted_from, named, play_by_turns
from rlalign.testing import Bench, PolicyGradient, session
from rlalign.testing.text import Bytes

CHOICES = ("yes", "no", "nobody")
SAMPLES = 4


class Board(Environment):
    """It shows what was said so far, shortened, and asks by choices every other time."""

    rewrites = True
    turns, tokens = 4, 60
    says_nothing = False

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or self.Config())
        self.name, self.ended, self.begun = "board", list[Any](), list[int]()

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), f"say {i}: ") for i in range(3)]

    def start_all(self, examples: Any, starts: Any, noises: Any) -> Sequence[tuple[Episode, Turn]]:
        self.begun.append(len(examples))
        return super().start_all(examples, starts, noises)

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        return Talk(self, noise), Turn(f"{example.prompt}{int(torch.randint(5, (1,), generator=start))}? ")


class Talk:
    """One of these."""

    def __init__(self, game: Board, noise: Generator) -> None:
        self.game, self.noise, self.heard = game, noise, list[str]()

    def step(self, text: str) -> Turn:
        self.heard.append(text)
        choices = CHOICES if len(self.heard) % 2 else None
        luck = int(torch.randint(4, (1,), generator=self.noise))
        say = "" if self.game.says_nothing else f"[{' '.join(self.heard)[-6 - luck :]}]"
        over, cut = len(self.heard) > 1 and luck == 0, len(self.heard) == 3 and luck == 1
        return Turn(say, 1 + luck / 4, done=over, cut=cut, choices=choices, metrics={"letters": len(text)})

    def close(self) -> None:
        self.game.ended.append(self)


def policy() -> Bytes:
    made = Bytes(Bytes.Config())
    made.setup()
    with torch.no_grad():
        made.table[:, 256] += 2.5  # so that turns end now and then
    return made


def play(game: Board, which: slice = slice(None), **how: Any) -> Rollout:
    seeds, examples = Seeds(1), game.examples("train")[which]
    places = range(*which.indices(3))
    asked = Sampling(samples=SAMPLES, max_new_tokens=6, **how)
    uniforms = partial(seeds.uniforms, "u", positions=places, samples=SAMPLES)
    playing = Playing(game, examples, SAMPLES, seeds.rng, places.start)
    rows = play_by_turns(policy(), asked, playing, lambda turn, *, steps: uniforms(turn, steps=steps))
    return named(counted_from(rows, places.start, SAMPLES), SAMPLES)


def test_a_row_is_a_turn_and_its_prompt_what_was_said_last() -> None:
    game = Board()
    rollout = play(game)
    assert rollout.flaw() is None and len(rollout) == len(rollout.examples)
    assert rollout.group_N.tolist() == [*range(len(rollout))]
    columns = rollout.columns
    for episode in range(3 * SAMPLES):
        rows = (columns["episode"] == episode).nonzero()[:, 0].tolist()
        assert columns["turn"][rows, 0].tolist() == [*range(len(rows))]
        start, sample = divmod(episode, SAMPLES)
        assert [rollout.examples[i].id for i in rows] == [
            f"{start}/{sample}/{turn}" for turn in range(len(rows))
        ]
        assert columns["start"][rows].tolist() == [start] * len(rows)
        turns = [columns["transcript"][i][0] for i in rows]
        for i, (_, before) in zip(rows[1:], turns, strict=False):
            assert rollout.examples[i].prompt == before.say
            assert torch.equal(rollout.inputs[i], policy().prompts([rollout.examples[i]])[0])
        for i, (text, turn) in zip(rows, turns, strict=True):
            assert rollout.texts[i] == text
            assert columns["played"][i].nonzero().tolist() == [[int(rollout.length_N[i]) - 1]]
            assert float(columns["played"][i].sum()) == turn.reward
            assert bool(rollout.finished_N[i]) != turn.cut
        assert all(not turn.over for _, turn in turns[:-1]) and (turns[-1][1].over or len(turns) == 4)
        rewards = torch.tensor([turn.reward for _, turn in turns])
        torch.testing.assert_close(columns["togo"][rows], rewards.flip(0).cumsum(0).flip(0))
    assert not bool(rollout.finished_N.all())
    assert {text for i, text in enumerate(rollout.texts) if columns["turn"][i, 0] % 2} <= set(CHOICES)
    assert game.begun == [3 * SAMPLES] and len({id(talk) for talk in game.ended}) == len(game.ended) == 12


def test_what_is_rescored_is_what_was_sampled() -> None:
    rollout, reader = play(Board(), top_k=30, temperature=0.8), policy()
    logits = reader.head(reader.features(rollout))
    found = steps_outputs(logits, rollout, rollout.chosen, reader.ends, ("logprobs", "full_logprobs"))
    for name in ("logprobs", "full_logprobs"):
        sampled_NT = getattr(rollout, f"{name}_NT")
        torch.testing.assert_close(found[name], sampled_NT[rollout.chosen], atol=2e-5, rtol=0)


def test_an_episode_knows_nothing_of_the_others() -> None:
    together = play(Board())
    for g in range(3):
        alone, ours = play(Board(), slice(g, g + 1)), together.take(together.columns["start"] == g)
        assert alone.columns["transcript"] == ours.columns["transcript"]
        assert [e.id for e in alone.examples] == [e.id for e in ours.examples]
        assert alone.columns["episode"].tolist() == ours.columns["episode"].tolist()
        assert torch.equal(alone.actions_NT, ours.actions_NT[:, : alone.steps])


def test_a_turn_that_says_nothing_is_told_of() -> None:
    game = Board()
    game.says_nothing = True
    with pytest.raises(ComponentError, match="`board`, example `0`, turn 2: it rewrites history"):
        play(game)
    assert len(game.ended) == 12


class Lazy(Board):
    """It begins one episode too few."""

    def start_all(self, examples: Any, starts: Any, noises: Any) -> Sequence[tuple[Episode, Turn]]:
        return super().start_all(examples[1:], starts[1:], noises[1:])


def test_as_many_episodes_begin_as_were_asked_for() -> None:
    with pytest.raises(
        ComponentError, match=r"`start_all` of environment `board` must return .* of 12, got 11"
    ):
        play(Lazy())


# -- rewards and figures ------------------------------------------------------------------------------------------


def test_figures_are_of_episodes_whichever_rows_are_scored_together() -> None:
    rollout = play(Board())
    score, togo = Played(Played.Config()).reward(rollout), ToGo(ToGo.Config()).reward(rollout)
    first_N = rollout.columns["turn"][:, 0] == 0
    for name in ("return", "turns", "letters"):
        assert (~score.metrics[name].isnan()).tolist() == first_N.tolist()
    torch.testing.assert_close(score.metrics["return"][first_N], togo.value[first_N])
    assert score.metrics["turns"][first_N].tolist() == rollout.columns["episode"].bincount().tolist()
    told = sum(len(text) for text in rollout.texts)
    assert float(score.metrics["letters"][first_N].sum()) == told
    for half in (slice(0, 5), slice(5, None)):  # several processes score some rows each
        part = Played(Played.Config()).reward(rollout.take(torch.arange(len(rollout))[half]))
        for name, x_N in part.metrics.items():
            torch.testing.assert_close(x_N, score.metrics[name][half], equal_nan=True)


def test_they_are_logged_and_compared_by_starts(tmp_path: Path) -> None:
    say = pipeline(rewards=["togo"], evaluate={"use": ["played"], "generation": {"samples": 2}})
    opened = session(tmp_path, say, COMPONENTS)
    opened.run()
    rows = [line for line in _metrics(opened) if "eval/played" in line]
    assert rows and all(row["eval/played/turns"] >= 2 for row in rows)
    returns = [row["eval/played/return"] for row in rows]
    for row, earned in zip(rows, returns, strict=True):
        assert earned == pytest.approx(row["eval/played"] * row["eval/responses"] / 6)


def _metrics(opened: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (opened.dir.path / "metrics.jsonl").read_text().splitlines()]


class Unlucky(Board):
    """One game of example 3 breaks off at its second turn, as one in another process does that fails twice."""

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), f"say {i}: ") for i in range(21)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        game, turn = super().start(example, start, noise)
        return (Broken() if example.id == "3" and torch.rand((), generator=noise) < 0.5 else game), turn


class Broken:
    """That game."""

    heard = 0

    def step(self, text: str) -> Turn:
        self.heard += 1
        return Turn("and? ", 1.0) if self.heard == 1 else Turn(cut=True, failed="no such door")


def test_with_a_bad_episode_goes_all_that_began_where_it_did(tmp_path: Path) -> None:
    """Its earlier turns, whose return nobody knows, and the other samples; what is forgiven counts starts."""
    say = pipeline(rewards=["togo"], generation={"samples": 3, "max_new_tokens": 4})
    bench = Bench(tmp_path, say, {**COMPONENTS, "board": Unlucky})
    rollout, reward = bench.rollout(21)
    bad = {
        ex.id
        for ex, said in zip(rollout.answered, rollout.columns[TRANSCRIPT], strict=True)
        if said[0][1].failed
    }
    assert 0 < len(bad) < 3  # not all of its episodes
    good = without_bad_episodes(bench.phase, rollout, evaluation=False)
    kept_N = torch.tensor([not example.id.startswith("3/") for example in rollout.answered])
    assert [e.id for e in good.answered] == [e.id for e in rollout.take(kept_N).answered]
    bench.session.dir.close()
    (dropped,) = map(json.loads, (bench.session.dir.path / "dropped.jsonl").read_text().splitlines())
    assert dropped["why"] == {sorted(bad)[0]: "no such door"}
    few = torch.tensor([example.id.split("/")[0] in ("3", "4", "5") for example in rollout.answered])
    with pytest.raises(ComponentError, match="1 of the 3 groups of iteration 1 hold a bad episode"):
        without_bad_episodes(bench.phase, rollout.take(few), evaluation=False)
    # Figures by example are those of the examples that are left.
    left, all_of = (by_example(bench.phase, *one) for one in ((good, reward.take(kept_N)), (rollout, reward)))
    places = [i for i, example in enumerate(compared(rollout)) if not example.id.startswith("3/")]
    assert len(compared(good)) == len(places) == 20
    for name, values in left.items():
        assert values == pytest.approx([all_of[name][i] for i in places])


# -- what does not go together --------------------------------------------------------------------------------------


class Adding(PolicyGradient):
    """It says that it adds up what later turns earned."""

    adds_turns = True


COMPONENTS: dict[str, type[Any]] = {"board": Board, "once": PolicyGradient, "adding": Adding}


def pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "task": "board",
        "policy": "bytes",
        "algorithm": "once",
        "generation": {"samples": 2, "max_new_tokens": 4},
        "train": {"iterations": 1, "prompts": 3, "lr": 0.1},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    (
        ({}, "`played` pays each for itself alone, whatever it leads to; say `rewards: \\[togo\\]`"),
        ({"algorithm": "adding", "rewards": ["togo"]}, "`adding` adds up what later turns earned"),
        ({"rewards": ["togo"], "responses": {"mix": {"sampled": 2}}}, "`mix` would tear apart"),
        ({"rewards": ["togo"], "train": {"iterations": 1, "prompts": 3, "refill": 2}}, "train.refill: "),
        (
            {"rewards": ["togo"], "train": {"iterations": 1, "prompts": 3, "on_bad_reward": "drop"}},
            "train.on_bad_reward: ",
        ),
    ),
)
def test_what_does_not_go_together_is_said_at_once(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        session(tmp_path, pipeline(**changes), COMPONENTS)


def test_either_way_of_adding_up_is_taken(tmp_path: Path) -> None:
    for place, changes in enumerate(({"algorithm": "adding"}, {"rewards": ["togo"]})):
        rollout, reward = Bench(tmp_path / str(place), pipeline(**changes), COMPONENTS).rollout(3)
        assert isinstance(reward, Reward) and len(rollout) > 6


def test_togo_is_of_single_turns_only() -> None:
    rollout = play(Board())
    plain = replace(rollout, columns={})
    with pytest.raises(ComponentError, match="`togo` is what came from a turn on"):
        ToGo(ToGo.Config()).reward(plain)
