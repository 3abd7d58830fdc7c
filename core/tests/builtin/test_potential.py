"""`potential`: where sentences end, what each earns, and that all of it adds up to the score."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlalign.builtin.potential import Potential, sentence_ends
from rlalign.data.batch import Score
from rlalign.data.example import Example
from rlalign.data.rollout import SCORE_OF, Rollout
from rlalign.data.spoken import Spoken
from rlalign.data.turn import Episode, Turn
from rlalign.errors import ComponentError, RLAlignError
from rlalign.interface.component import Component, Task
from rlalign.interface.environment import Environment
from rlalign.interface.hooks import hookimpl
from rlalign.testing import Bench, ComponentTests, PolicyGradient, run
from rlalign.testing.text import Bytes

# -- where sentences end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two!", ["One.", " Two!"]),
        ("Pi is 3.14, no? Yes…", ["Pi is 3.14, no?", " Yes…"]),
        ('"Go." (He went.) End', ['"Go."', " (He went.)"]),
        ("A line\nand another\n\nlast", ["A line\n", "and another\n\n"]),
        ("你好。再见！好", ["你好。", "再见！"]),
        ("Wait... what?!", ["Wait...", " what?!"]),
        ("no end at all", []),
        ("", []),
    ],
)
def test_sentences_end_where_the_rule_says(text: str, sentences: list[str]) -> None:
    policy = Bytes(Bytes.Config())
    data = text.encode()
    found = sentence_ends(policy.text, torch.tensor([*data, 256]))
    expected, at = [], 0
    for sentence in sentences:
        at += len(sentence.encode())
        expected.append(at - 1)
    assert found == expected


def test_a_token_may_hold_the_end_of_a_sentence_and_more() -> None:
    words = ["I came", ". I", " saw", "! ", "So?"]

    def text_of(actions: torch.Tensor) -> str:
        return "".join(words[a] for a in actions.tolist())

    assert sentence_ends(text_of, torch.arange(5)) == [1, 3, 4]


def test_sentences_are_those_of_the_policy_and_end_with_its_turns() -> None:
    """What is paid at a step that nobody chose would be lost, and what was told earns nothing."""
    run: Any = SimpleNamespace(models=SimpleNamespace(policy=Bytes(Bytes.Config())))
    actions_T = torch.tensor([*b"A. B. C", 256])
    turns = (torch.tensor([0]), torch.tensor([3, 4, 5, 6, 7]))
    potential = Potential(Potential.Config())
    assert potential._ends(run, actions_T, turns) == [0, 4]
    assert potential._ends(run, actions_T, (torch.tensor([7]),)) == []  # the end earns it all
    every = Potential(Potential.Config(every=2))
    assert every._ends(run, actions_T, (turns[0], turns[1][:-1])) == [3, 5]


# -- what is paid where -----------------------------------------------------------------------------

TEXTS = (("Hi. You! Ok", "One"), ("A. B. C. D.", "Yes.", "E. F"))


class Told(Task):
    """Logged responses of several sentences; what stands behind a bar is not read."""

    def examples(self, split: str) -> list[Example]:
        return [
            Example(str(i), f"p{i}", responses=texts, scores=(0.0,) * len(texts))
            for i, texts in enumerate(TEXTS)
        ]

    def postprocess(self, text: str) -> str:
        return text.partition("|")[0]


class Letters(Component):
    """The number of letters, and of sentences to themselves in the group: a score of its group only."""

    asked: list[tuple[str, ...]] = []

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        self.asked.append(rollout.texts)
        most = [max(map(len, rollout.texts))] * len(rollout)
        counts = [sum(c.isalpha() for c in text) + m / 7 for text, m in zip(rollout.texts, most, strict=True)]
        return Score(torch.tensor(counts), metrics={"texts": torch.tensor(counts)})


class Each(Component):
    """A third at every step."""

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        return Score(torch.where(rollout.mask_NT, 1 / 3, 0.0))


KNOWN: dict[str, type[Any]] = {
    "told": Told,
    "letters": Letters,
    "each": Each,
    "once": PolicyGradient,
    "words": type("Words", (Component,), {
        "__doc__": "Words.",
        "reward": hookimpl(lambda self, rollout: Score(torch.tensor([float(len(t.split())) for t in rollout.texts]))),
    }),
}  # fmt: skip


def pipeline(*rewards: Any, **more: Any) -> dict[str, Any]:
    return {
        "task": "told",
        "policy": "bytes",
        "rewards": list(rewards),
        "algorithm": "once",
        "responses": "logged",
        "train": {"iterations": 2, "prompts": 2, "lr": 0.01},
        **more,
    }


def paid(bench: Bench, name: str) -> list[dict[int, float]]:
    """Of each response, what is paid at which step."""
    _, reward = bench.rollout(2)
    part = reward.parts[name]
    return [{t: round(float(x), 5) for t, x in enumerate(row) if x} for row in part]


def test_each_sentence_earns_what_it_adds(tmp_path: Path) -> None:
    found = paid(Bench(tmp_path, pipeline("words", "potential"), KNOWN), "words")
    # "Hi. You! Ok" and its end: sentences end with the bytes 2 and 7; the rest is paid with the end, 11.
    assert found == [
        {2: 1.0, 7: 1.0, 11: 1.0},
        {3: 1.0},
        {1: 1.0, 4: 1.0, 7: 1.0, 10: 1.0},
        {3: 1.0},
        {1: 1.0, 4: 1.0},
    ]


def test_every_token_or_so_many(tmp_path: Path) -> None:
    found = paid(Bench(tmp_path / "1", pipeline("words", {"potential": {"every": "token"}}), KNOWN), "words")
    assert found[0] == {0: 1.0, 4: 1.0, 9: 1.0}  # where each word begins
    found = paid(Bench(tmp_path / "2", pipeline("words", {"potential": {"every": 4}}), KNOWN), "words")
    assert found[0] == {3: 1.0, 7: 1.0, 11: 1.0}


@pytest.mark.parametrize("every", ["sentence", "token", 3])
def test_all_payments_add_up_to_the_score(every: Any, tmp_path: Path) -> None:
    """For a score of the group, under a wrapper of its own, in float32; and weights apply afterwards."""
    rewards = [{"letters": None, "weight": -2}, {"clip": {"high": 5.0}}, "each"]
    _, whole = Bench(tmp_path / "a", pipeline(*rewards), KNOWN).rollout(2)
    bench = Bench(tmp_path / "b", pipeline(*rewards, {"potential": {"every": every}}), KNOWN)
    rollout, dense = bench.rollout(2)
    assert whole.parts["letters"].ndim == 1 and dense.parts["letters"].shape == rollout.mask_NT.shape
    torch.testing.assert_close(dense.parts["letters"].sum(1), whole.parts["letters"], rtol=0, atol=2e-6)
    torch.testing.assert_close(dense.total_N, whole.total_N, rtol=0, atol=1e-5)
    assert torch.equal(dense.parts["each"], whole.parts["each"])  # paid at every step before
    assert torch.equal(dense.metrics["letters/texts"], whole.metrics["letters/texts"])


def test_prefixes_come_in_whole_groups_as_the_task_reads_them(tmp_path: Path) -> None:
    Letters.asked.clear()

    class Barred(Told):
        def examples(self, split: str) -> list[Example]:
            return [Example("0", "p", ("A. B|. C. D", "E. F"), (0.0, 0.0)), Example("1", "q", ("G",), (0.0,))]

    Bench(tmp_path, pipeline("letters", "potential"), {**KNOWN, "told": Barred}).rollout(2)
    assert Letters.asked == [
        ("A. B", "E. F", "G"),  # what they earn in the end
        ("A.", "E."),  # the group without a sentence is not asked again
        ("A. B", "E. F"),  # and what has nothing more to tell goes with its group, whole
        ("A. B", "E. F"),
    ]


def test_what_is_below_stays_and_what_is_between_is_asked(tmp_path: Path) -> None:
    rewards = [
        "words",
        {"clip": {"high": 1.5}},
        "potential",
        {"clip": {"high": 0.7}, "as": "step"},
        "letters",
    ]
    _, reward = Bench(tmp_path, pipeline(*rewards), KNOWN).rollout(2)
    assert reward.parts["letters"].ndim == 1
    # Words are held to 1.5 first; each payment then to 0.7.
    steps = [[round(float(x), 5) for x in row if x] for row in reward.parts["words"]]
    assert steps[0] == [0.7, 0.5] and steps[2] == [0.7, 0.5]


def test_potentials_may_nest(tmp_path: Path) -> None:
    rewards = ["words", {"potential": {"every": "sentence"}}, "letters", {"potential": None, "as": "again"}]
    rollout, reward = Bench(tmp_path, pipeline(*rewards), KNOWN).rollout(2)
    assert reward.parts["words"].sum(1).tolist() == [3.0, 1.0, 4.0, 1.0, 2.0]
    assert reward.parts["letters"].shape == rollout.mask_NT.shape


def test_a_metric_may_be_paid_so_too(tmp_path: Path) -> None:
    """Under `evaluate` the phase's rewards stand above, and nobody asks them for prefixes there."""
    asked = {"split": "train", "examples": 2, "use": ["words", "letters", "potential"]}
    _, session = run(
        tmp_path, pipeline("words", evaluate=asked, generation={"samples": 2, "max_new_tokens": 9}), KNOWN
    )
    plain = {**asked, "use": ["words", "letters"]}
    _, other = run(
        tmp_path / "b",
        pipeline("words", evaluate=plain, generation={"samples": 2, "max_new_tokens": 9}),
        KNOWN,
    )
    for one, two in zip(evaluated(session.dir.path), evaluated(other.dir.path), strict=True):
        assert one["eval/letters"] == pytest.approx(two["eval/letters"], abs=1e-5)
        assert one["eval/words"] == two["eval/words"]


def evaluated(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/letters" in row]


def test_a_part_of_a_remembered_response_is_scored_anew(tmp_path: Path) -> None:
    """Not by the score that its whole is remembered with, which would all be paid at its first bit."""
    rewards = ["words", {"potential": {"every": 4}}]
    bench = Bench(tmp_path, pipeline(*rewards), KNOWN)
    rollout, reward = bench.rollout(2)
    known = rollout.with_columns(**{SCORE_OF + name: x for name, x in reward.given.items()})
    again = bench.phase.plan.training.reward(bench.phase.run, known)
    assert torch.equal(again.parts["words"], reward.parts["words"])


# -- episodes ---------------------------------------------------------------------------------------


class Noisy(Environment):
    """It says much between the policy's two turns, of which the first may be cut by a stop string."""

    turns, tokens = 2, 40

    def examples(self, split: str) -> list[Example]:
        return [Example(str(i), f"say {i}: ") for i in range(2)]

    def start(self, example: Example, start: torch.Generator, noise: torch.Generator) -> tuple[Episode, Turn]:
        return Silent(), Turn("go ")


class Silent:
    """One of its episodes."""

    def step(self, text: str) -> Turn:
        return Turn(" Much. Was! Said? ")


class Read(Component):
    """The number of characters; remembers what it read."""

    seen: list[tuple[str, ...]] = []

    @hookimpl
    def reward(self, rollout: Rollout) -> Score:
        self.seen.append(rollout.texts)
        return Score(torch.tensor([float(len(text)) for text in rollout.texts]))


def noisy(folder: Path, every: Any, **generation: Any) -> tuple[Rollout, list[list[float]], list[list[str]]]:
    """Its responses, what is paid at the chosen steps of each, and the parts of each that were scored."""
    Read.seen.clear()
    how = {"samples": 1, "max_new_tokens": 4, "min_new_tokens": 4, **generation}
    asked = pipeline(
        "read", {"potential": {"every": every}}, task="noisy", responses="sampled", generation=how
    )
    rollout, reward = Bench(folder, asked, {**KNOWN, "noisy": Noisy, "read": Read}).rollout(2)
    assert not reward.parts["read"][~rollout.mask_NT].any()
    paid = [x[mine].tolist() for x, mine in zip(reward.parts["read"], rollout.mask_NT, strict=True)]
    return rollout, paid, [list(parts) for parts in zip(*Read.seen[1:], strict=True)]


def test_what_an_environment_says_is_in_no_part(tmp_path: Path) -> None:
    rollout, paid, parts = noisy(tmp_path, "token")
    for text, earned, scored in zip(rollout.texts, paid, parts, strict=True):
        assert scored == [
            text[:n] for n in (1, 2, 3, 4, 6, 7, 8)
        ]  # the fifth ends the line between two turns
        assert earned == [1, 1, 1, 1, 2, 1, 1, 1]


def test_a_turn_is_a_line_of_its_own(tmp_path: Path) -> None:
    rollout, paid, _ = noisy(tmp_path, "sentence")
    for text, earned in zip(rollout.texts, paid, strict=True):
        assert sum(earned) == len(text) == 9 and sum(earned[:4]) == 4


def test_a_part_holds_no_stop_string_of_an_earlier_turn(tmp_path: Path) -> None:
    """A string of which something is always found: the first turn is cut somewhere, and so is each of its parts."""
    rollout, _, parts = noisy(tmp_path, "token", stop=list("abcdefghijklmnopqrstuvwxyz0123456789"))
    assert any(len(text) < 9 for text in rollout.texts)
    for text, scored in zip(rollout.texts, parts, strict=True):
        assert all(text.startswith(part) for part in scored)


def test_logged_episodes_are_read_by_what_their_policy_said(tmp_path: Path) -> None:
    class Logged(Told):
        def examples(self, split: str) -> list[Example]:
            own = [{"role": "assistant", "content": text} for text in ("Hi. You", "Ok")]
            said = Spoken([own[0], {"role": "environment", "content": "One. Two. Three."}, own[1]])
            return [Example(str(i), "p", responses=(said,), scores=(0.0,)) for i in range(2)]

    found = paid(Bench(tmp_path, pipeline("words", "potential"), {**KNOWN, "told": Logged}), "words")
    # "Hi. You" and its end are 8 bytes, what it is told 16.
    assert found == [{2: 1.0, 7: 1.0, 26: 1.0}] * 2


# -- run.scores_above ---------------------------------------------------------------------------------


def test_only_a_wrapper_may_ask_what_stands_above(tmp_path: Path) -> None:
    class Asks(Component):
        @hookimpl
        def reward(self, run, rollout):
            return run.scores_above(rollout)[0]

    for rewards in (["words", "asks"], ["words", "asks", "potential"]):
        bench = Bench(tmp_path / str(len(rewards)), pipeline(*rewards), {**KNOWN, "asks": Asks})
        with pytest.raises(
            ComponentError, match=r"`asks`.*run\.scores_above asks what stands above a wrapper"
        ):
            bench.rollout(2)


def test_a_fault_at_a_beginning_names_who_made_it(tmp_path: Path) -> None:
    class Strict(Component):
        @hookimpl
        def reward(self, rollout):
            if "A." in rollout.texts:
                raise ValueError("too short")
            return Score(torch.zeros(len(rollout)))

    with pytest.raises(RLAlignError, match=r"`reward` of `strict`.*too short"):
        Bench(tmp_path, pipeline("strict", "potential"), {**KNOWN, "strict": Strict}).rollout(2)


# -- in a run ---------------------------------------------------------------------------------------


def test_a_policy_learns_from_payments_on_the_way(tmp_path: Path) -> None:
    """Two iterations on sampled responses: the total is logged as ever, and weights move."""
    asked = pipeline(
        "letters",
        {"potential": {"every": "token"}},
        responses="sampled",
        generation={"samples": 4, "max_new_tokens": 12},
    )
    _, dense = run(tmp_path / "a", asked, KNOWN)
    _, plain = run(tmp_path / "b", {**asked, "rewards": ["letters"]}, KNOWN)
    rows = [
        [json.loads(line) for line in (s.dir.path / "metrics.jsonl").read_text().splitlines()]
        for s in (dense, plain)
    ]
    assert len(rows[0]) == 2
    for one, two in zip(*rows, strict=True):
        assert one["reward/total"] == pytest.approx(two["reward/total"], abs=1e-5)
    # Without a value, an advantage is the response's total: what is learned is the same up to rounding.
    torch.testing.assert_close(
        dense.models.policy.state_dict()["table"],
        plain.models.policy.state_dict()["table"],
        rtol=0,
        atol=1e-5,
    )


class TestPotential(ComponentTests):
    component = "potential"
    pipeline = {"task": "numbers", "rewards": ["token-sum", "length", {"potential": {"every": 2}}]}
    options = {"every": 2}


class TestPotentialOfSentences(ComponentTests):
    component = "potential"
    pipeline = {
        "policy": "bytes",
        "rewards": ["length", "potential"],
        "generation": {"samples": 4, "max_new_tokens": 40},
    }
