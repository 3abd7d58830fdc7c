"""Episodes of several turns in the sampling loop, over a policy of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Generator

from rlalign import (
    ComponentError,
    Environment,
    Episode,
    Example,
    Options,
    RLAlignError,
    Rollout,
    Sampling,
    Turn,
)
from rlalign.builtin.nucleus import Nucleus
from rlalign.data.packed import pack, unpack
from rlalign.data.rollout import concat
from rlalign.data.spoken import messages_of
from rlalign.decoding.logits import steps_outputs
from rlalign.decoding.play import Choices, trie
from rlalign.decoding.sampler import sample
from rlalign.errors import BadLogits
from rlalign.randomness import Seeds
from rlalign.running.playing import Playing
from rlalign.testing.text import Bytes

CHOICES = ("yes", "no", "nobody")


class Echo(Environment):
    """It says back what it heard, and asks by choices every other time."""

    class Config(Options):
        """No options."""

    turns, tokens = 4, 60
    open: list[Any]
    ended: list[Any]

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or self.Config())
        self.name, self.open, self.ended = "echo", [], []

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), f"say {i}: ") for i in range(3)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        episode = Talk(self, int(torch.randint(5, (1,), generator=start)), noise)
        self.open.append(episode)
        return episode, Turn(f"{example.prompt}{episode.number}? ")


class Talk:
    """One of these."""

    def __init__(self, game: Echo, number: int, noise: Generator) -> None:
        self.game, self.number, self.noise, self.heard = game, number, noise, list[str]()

    def step(self, text: str) -> Turn:
        self.heard.append(text)
        choices = CHOICES if len(self.heard) % 2 else None
        over = len(self.heard) > 1 and "q" in text
        luck = int(torch.randint(3, (1,), generator=self.noise))
        metrics = {"letters": float(len(text))}
        return Turn(f"[{text[:luck]}]", len(text) / 4, done=over, choices=choices, metrics=metrics)

    def close(self) -> None:
        self.game.ended.append(self)


def policy() -> Bytes:
    made = Bytes(Bytes.Config())
    made.setup()
    with torch.no_grad():
        made.table[:, 256] += 2.5  # so that turns end now and then
    return made


def play(game: Echo, how: Sampling, who: Any = None, which: slice = slice(None), **more: Any) -> Rollout:
    seeds, examples = Seeds(1), game.examples("train")[which]
    places = range(*which.indices(3))
    uniforms = seeds.uniforms("u", positions=places, samples=how.samples, steps=game.tokens)
    played = Playing(game, examples, how.samples, seeds.rng, places.start)
    return sample(who or policy(), examples, how, uniforms, game=played, **more)


HOW = Sampling(samples=5, max_new_tokens=6, min_new_tokens=2)


def test_the_row_is_what_was_said_byte_for_byte() -> None:
    game, reader = Echo(), policy()
    rollout = play(game, HOW, reader)
    assert rollout.flaw() is None
    for i, row in enumerate(rollout.columns["transcript"]):
        tokens, at = rollout.actions_NT[i].tolist(), 0
        mine, turn_T = rollout.mask_NT[i].tolist(), rollout.columns["turn"][i].tolist()
        for place, (text, turn) in enumerate(row):
            data = text.encode()
            assert bytes(tokens[at : at + len(data)]) == data and all(mine[at : at + len(data)])
            at += len(data)
            if at < len(tokens) and tokens[at] == 256 and mine[at]:
                at += 1
            assert rollout.columns["played"][i, at - 1] == turn.reward
            assert set(turn_T[at - len(data) : at]) == {place}
            if place + 1 < len(row):
                told = str(turn.say).encode()
                assert bytes(tokens[at : at + len(told)]) == told and not any(mine[at : at + len(told)])
                assert set(turn_T[at : at + len(told)]) == {place + 1}
                at += len(told)
        assert at == int(rollout.length_N[i])
        assert rollout.texts[i] == "\n".join(text for text, _ in row)
        assert int(rollout.columns["turns"][i]) == len(row)
        assert float(rollout.columns["played"][i].sum()) == pytest.approx(sum(turn.reward for _, turn in row))


def test_what_is_rescored_is_what_was_sampled() -> None:
    reader = policy()
    rollout = play(Echo(), HOW.model_copy(update={"top_k": 30, "temperature": 0.8}), reader)
    logits = reader.head(reader.features(rollout))
    found = steps_outputs(logits, rollout, rollout.chosen, reader.ends, ("logprobs", "full_logprobs"))
    torch.testing.assert_close(found["logprobs"], rollout.logprobs_NT[rollout.chosen], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        found["full_logprobs"], rollout.full_logprobs_NT[rollout.chosen], atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("compact", (True, False))
def test_an_episode_knows_nothing_of_the_others(compact: bool) -> None:
    together = play(Echo(), HOW, compact=compact)
    for g in range(3):
        alone, ours = play(Echo(), HOW, which=slice(g, g + 1)), together.take(together.group_N == g)
        assert alone.columns["transcript"] == ours.columns["transcript"]
        assert torch.equal(alone.actions_NT, ours.actions_NT[:, : alone.steps])
    pieces = concat([play(Echo(), HOW, which=slice(0, 2)), play(Echo(), HOW, which=slice(2, 3))])
    assert torch.equal(pieces.columns["turn"], together.columns["turn"])


def test_where_memory_runs_out_episodes_begin_again() -> None:
    """Halved and begun anew, with the same tokens; every episode that was begun is closed, once."""
    game, reader = Echo(), policy()
    whole, decoder = play(Echo(), HOW, reader), reader.decoder
    calls = []

    def short_of_memory(inputs: Sequence[torch.Tensor], k: int) -> Any:
        calls.append(len(inputs))
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("no room")
        return decoder(inputs, k)

    reader.decoder = short_of_memory  # type: ignore[method-assign]
    again = play(game, HOW, reader)
    assert calls[0] == 3 and again.columns["transcript"] == whole.columns["transcript"]
    assert len(game.open) > 15 and sorted(map(id, game.open)) == sorted(map(id, game.ended))


def test_turns_end_by_themselves_by_length_by_choice_and_by_what_stops_them() -> None:
    game = Echo()
    rollout = play(game, HOW.model_copy(update={"stop": ("e",)}))
    first = {row[0][0] for row in rollout.columns["transcript"]}
    assert any(len(text) == 6 for text in first) and any(len(text) < 6 for text in first)
    assert not any(
        "e" in text for row in rollout.columns["transcript"] for text, _ in row if text not in CHOICES
    )
    chosen = {row[1][0] for row in rollout.columns["transcript"]}
    assert chosen <= set(CHOICES) and len(chosen) > 1
    assert min(len(row[0][0].encode()) for row in rollout.columns["transcript"]) >= 1
    assert len(game.ended) == len(game.open) == 15


def test_the_last_turn_by_number_is_the_end_and_a_row_that_is_full_is_cut() -> None:
    game = Echo()
    by_number = play(game, HOW)
    long = by_number.columns["turns"] == 4
    assert bool(long.any()) and bool(by_number.finished_N[long].all())
    game.tokens = 16
    full = play(game, HOW)
    assert int(full.length_N.max()) <= 16 and not bool(full.finished_N[full.columns["turns"] < 4].any())
    for i, row in enumerate(full.columns["transcript"]):
        told = sum(len(str(turn.say)) for _, turn in row[:-1])
        assert told == int((~full.mask_NT[i, : int(full.length_N[i])]).sum())  # nothing is told in part


def test_greedy_episodes() -> None:
    rollout = play(Echo(), Sampling(greedy=True, max_new_tokens=4))
    assert rollout.settings[0].temperature == 1.0 and int(rollout.columns["turns"].min()) > 1


def test_a_transcript_is_kept_to_the_bit() -> None:
    rollout = play(Echo(), HOW)
    again = unpack(pack(rollout))
    assert again.columns["transcript"] == rollout.columns["transcript"]
    assert torch.equal(again.columns["played"], rollout.columns["played"])


# -- faults ----------------------------------------------------------------------------------------------------


class Faulty(Echo):
    """What goes wrong is said by `fault`."""

    fault = ""

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        episode, turn = super().start(example, start, noise)
        if self.fault == "first":
            return episode, Turn(f"{float(torch.rand(1, generator=noise))}")
        if self.fault == "counted":
            return episode, Turn("go", metrics={"begun": 1.0})
        if self.fault == "start" and example.id == "2":
            raise OSError("no such game")
        if self.fault in ("step", "none"):
            episode.step = self.step  # type: ignore[method-assign]
        found: Any = {"alone": turn, "swapped": (turn, episode)}.get(self.fault, (episode, turn))
        return found  # type: ignore[no-any-return]

    def step(self, text: str) -> Any:
        if self.fault == "none":
            return None
        raise ZeroDivisionError("by nought")


@pytest.mark.parametrize(
    ("fault", "said"),
    (
        ("first", "environment `echo`: two episodes of example `0` begin otherwise"),
        ("counted", "the first turn of example `0` has a reward or metrics, or ends the episode"),
        ("start", "environment `echo`, starting example `2`, raised OSError: no such game"),
        (
            "step",
            "environment `echo`, example `0`, episode 5, turn 1, told '.*', raised ZeroDivisionError: by nought",
        ),
        (
            "none",
            "environment `echo`, example `0`, episode 5, turn 1, told '.*', must return a Turn, got nothing",
        ),
        ("alone", r"`start` must return \(episode, Turn\), and for example `0` returned a Turn"),
        ("swapped", r"`start` must return \(episode, Turn\), and for example `0` returned \(Turn, \w+\)"),
    ),
)
def test_a_fault_names_the_environment_the_example_and_the_turn(fault: str, said: str) -> None:
    game = Faulty()
    game.fault = fault
    with pytest.raises(ComponentError, match=said):
        play(game, HOW)
    begun = {id(e) for e in game.open} if fault not in ("alone", "swapped") else set()
    assert begun - {id(e) for e in game.ended} <= {id(game.open[-1])}


def test_a_turn_says_what_is_wrong_with_it() -> None:
    with pytest.raises(TypeError, match="is a list, and got one text"):
        Turn(choices="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leaves nothing to say"):
        Turn(choices=())
    with pytest.raises(ValueError, match="who is the policy"):
        Turn([{"role": "assistant", "content": "I"}])


def test_a_turn_holds_plain_numbers_whatever_they_were() -> None:
    """A simulator's are NumPy's, which JSON does not know."""
    numbers: Any = {
        "reward": numpy.float32(0.5),
        "done": numpy.bool_(True),
        "metrics": {"won": numpy.int64(1)},
    }
    turn = Turn(**numbers)
    assert json.loads(json.dumps(messages_of([("yes", turn)], [True]))) == [
        {"role": "assistant", "content": "yes", "reward": 0.5}
    ]
    assert type(turn.reward) is float and type(turn.done) is bool and type(turn.metrics["won"]) is float


@pytest.mark.parametrize(
    ("wrong", "said"),
    (
        ({"reward": None}, "`reward` of a Turn is a number, and got None"),
        ({"reward": "much"}, "`reward` of a Turn is a number, and got 'much'"),
        ({"metrics": {"won": "yes"}}, "`metrics` of a Turn are numbers, and `won` is 'yes'"),
        ({"choices": ("a", 1)}, "`choices` of a Turn are texts, and one is 1"),
        ({"choices": ("",)}, "leaves nothing to say"),
        ({"say": {"role": "user", "content": "go on"}}, "`say` of a Turn is a text or a list of messages"),
        ({"say": None}, "`say` of a Turn is a text or a list of messages"),
        ({"say": ["go on"]}, "`say` of a Turn is a text or a list of messages"),
    ),
)
def test_a_turn_that_is_no_turn_is_refused_where_it_is_made(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        Turn(**wrong)


def test_a_step_of_all_that_returns_nothing_is_named() -> None:
    game = type("Mute", (Echo,), {"step_all": lambda self, episodes, texts: None})()
    with pytest.raises(
        ComponentError,
        match=r"`step_all` of environment `echo`.* a turn for each response: .*nothing; is a `return`",
    ):
        play(game, HOW)
    assert len(game.open) == len(game.ended)


def test_logits_that_are_no_numbers_are_refused_as_ever() -> None:
    reader = policy()
    with torch.no_grad():
        reader.table.fill_(torch.nan)
    with pytest.raises(BadLogits, match="example `0`, response 1, step 1"):
        play(Echo(), HOW, reader)


# -- choices -----------------------------------------------------------------------------------------------------


def test_choices_as_published(golden: dict[str, Any]) -> None:
    case = golden["choices_trie"]
    logits = {
        prefix: torch.tensor(x, dtype=torch.float64)
        for prefix, x in case["inputs"]["logits_by_prefix"].items()
    }
    total = 0.0
    for row in case["expected"]["rows"]:
        choices, prefix, logprobs = Choices(trie(case["inputs"]["choices"], ())), list[int](), []
        for allowed, token in zip(row["allowed"], row["choice"], strict=True):
            assert sorted(choices.next()) == allowed
            here = logits.get(" ".join(map(str, prefix)), torch.zeros(8, dtype=torch.float64))
            logprobs.append(float(here[allowed].log_softmax(0)[allowed.index(token)]))
            over = choices.advance(token)
            prefix.append(token)
        assert over
        assert logprobs == pytest.approx(row["logprobs"], abs=1e-9)
        total += row["probability"]
    assert total == pytest.approx(1)


def test_where_a_nucleus_holds_none_of_what_may_be_said_the_likeliest_of_it_is_kept() -> None:
    """NLPO's other model thinks of ends only: neither least lengths nor choices leave anything of that."""
    other, within = policy(), Nucleus("masking", top_p=0.5)
    with torch.no_grad():
        other.table[:, 256] += 50
        other.table[:, ord("n")] += 5  # of the choices' first letters the likelier one
    within.resolve({"masking": other})
    rollout = play(Echo(), HOW, within=within)
    texts = [[text for text, _ in row] for row in rollout.columns["transcript"]]
    assert all(len(row[0].encode()) == 2 for row in texts)
    assert {row[1] for row in texts} == {"no"}


def test_a_choice_that_begins_another_needs_an_end() -> None:
    choices = Choices(trie([[1], [1, 2]], (9,)))
    assert not choices.advance(1)
    assert sorted(choices.next()) == [2, 9] and choices.advance(9)
    with pytest.raises(RLAlignError, match="one choice begins another"):
        trie([[1], [1, 2]], ())


@pytest.fixture
def golden() -> dict[str, Any]:
    from pathlib import Path

    cases = json.loads((Path(__file__).parent / "golden_episodes.json").read_text())["cases"]
    return {case["id"]: case for case in cases}
