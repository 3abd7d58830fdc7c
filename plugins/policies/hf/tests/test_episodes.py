"""Episodes of several turns over language models: what is sampled is what is rescored, alone and together."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from rlalign import ConfigError, Environment, Episode, Example, Options, RLAlignError, Rollout, Sampling, Turn
from rlalign.config.load import load_pipeline
from rlalign.data.rollout import ends_of_turns
from rlalign.data.spoken import Spoken, messages_of
from rlalign.decoding.logits import steps_outputs
from rlalign.decoding.sampler import sample
from rlalign.randomness import Seeds
from rlalign.running.checked import check
from rlalign.running.playing import Playing
from rlalign.testing import Bench, ComponentTests, plain_gradient, registry
from rlalign_plugin_hf.turns import ANSWER

PROMPTS = ("w1", "w2 w3 w4 w5", "w6 w7 w8 w9 w10 w11")
CHOICES = ("w1 w2", "w1 w3 w4", "w5", "w1")
"""Of several tokens, and one that begins others."""


class Chatter(Environment):
    """Free text and choices in turn; what it says follows from what it heard, and from noise."""

    class Config(Options):
        """No options."""

    turns, tokens = 5, 26

    def examples(self, split: str) -> Sequence[Example]:
        return [Example(str(i), prompt) for i, prompt in enumerate(PROMPTS)]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        return Talk(noise), Turn()


class Talk:
    """One of these conversations."""

    def __init__(self, noise: Generator) -> None:
        self.noise, self.heard = noise, 0

    def step(self, text: str) -> Turn:
        self.heard += 1
        words = text.split()
        count = 1 + (len(words) + int(torch.randint(3, (1,), generator=self.noise))) % 4
        say = " ".join(f"w{(7 * self.heard + 3 * i + len(text)) % 50 + 1}" for i in range(count))
        over = self.heard > 1 and len(words) == 1
        return Turn(say, len(words) / 10, done=over, choices=CHOICES if self.heard % 2 else None)


HOW = Sampling(samples=4, temperature=0.7, top_k=12, min_new_tokens=2, max_new_tokens=5)


def played(policy: Any, how: Sampling = HOW, which: slice = slice(None), compact: bool = True) -> Rollout:
    """Episodes of the examples at these places."""
    environment, seeds = Chatter(Chatter.Config()), Seeds(3)
    examples, places = environment.examples("train")[which], range(*which.indices(len(PROMPTS)))
    uniforms = seeds.uniforms("u", positions=places, samples=how.samples, steps=environment.tokens)
    game = Playing(environment, examples, how.samples, seeds.rng, places.start)
    return sample(policy, examples, how, uniforms, game=game, compact=compact)


@pytest.mark.parametrize("lora", (None, {"r": 3}), ids=("full", "lora"))
@pytest.mark.parametrize("family", ("gpt2", "llama", "t5", "bart"))
def test_what_is_rescored_is_what_was_sampled(policy_of: Callable[..., Any], family: str, lora: Any) -> None:
    policy = policy_of(family, lora=lora)
    if lora:  # zero at first, which would hide what the adapters do
        with torch.no_grad():
            for weight in policy.adapter_weights().values():
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        policy.version += 1
    rollout = played(policy)
    chose, gave = int(rollout.mask_NT.sum()), int((~rollout.mask_NT).sum())
    assert chose > 60 and gave > 30 and float(rollout.columns["turns"].float().mean()) > 1.5
    with torch.no_grad():
        logits = policy.head(policy.features(rollout))
    found = steps_outputs(logits, rollout, rollout.chosen, policy.ends, ("logprobs", "full_logprobs"))
    for name, known_NT in (("logprobs", rollout.logprobs_NT), ("full_logprobs", rollout.full_logprobs_NT)):
        torch.testing.assert_close(found[name], known_NT[rollout.chosen], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ("gpt2", "llama", "t5", "bart"))
def test_an_episode_knows_nothing_of_the_others(policy_of: Callable[..., Any], family: str) -> None:
    policy = policy_of(family)
    together, whole = played(policy), played(policy, compact=False)
    assert torch.equal(together.actions_NT, whole.actions_NT)
    assert together.columns["transcript"] == whole.columns["transcript"]
    for g in range(len(PROMPTS)):
        alone, ours = played(policy, which=slice(g, g + 1)), together.take(together.group_N == g)
        assert alone.columns["transcript"] == ours.columns["transcript"]
        assert torch.equal(alone.actions_NT, ours.actions_NT[:, : alone.steps])
        assert torch.equal(alone.mask_NT, ours.mask_NT[:, : alone.steps])


def test_choices_are_all_that_is_said_and_their_probabilities_add_up(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("llama")
    rollout = played(policy, HOW.model_copy(update={"top_k": 0}))
    asked = [
        (before.choices, text)
        for row in rollout.columns["transcript"]
        for (_, before), (text, after) in pairwise(row)
        if not after.cut
    ]
    chosen = [text for choices, text in asked if choices]
    assert len(chosen) > 5 and set(chosen) <= set(CHOICES) and len(set(chosen)) > 1
    assert rollout.allowed is not None
    row_M, step_M = rollout.chosen
    counts = rollout.allowed.mask(row_M, step_M).sum(1)
    assert int(counts.min()) <= 3 and int(counts.max()) == 64


def test_the_row_is_the_prompt_and_what_was_said_in_turn(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("gpt2")
    rollout = played(policy)
    assert not bool((rollout.columns["turn"].diff(dim=1) < 0)[:, :0].any())
    for i, row in enumerate(rollout.columns["transcript"]):
        length = int(rollout.length_N[i])
        tokens, mine = rollout.actions_NT[i, :length].tolist(), rollout.mask_NT[i, :length].tolist()
        at = 0
        for place, (text, turn) in enumerate(row):
            end = at
            while end < length and mine[end]:
                end += 1
                if rollout.columns["turn"][i, end - 1] != place:  # two of the policy's turns side by side
                    end -= 1
                    break
            assert policy.text(torch.tensor(tokens[at:end])) == text
            assert rollout.columns["played"][i, end - 1] == pytest.approx(turn.reward)
            at = end
            if place + 1 < len(row):
                given = policy.given(turn.say, True).tolist()
                assert tokens[at : at + len(given)] == given
                at += len(given)
        assert at == length


@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_the_engines_gradient_is_that_of_a_plain_graph(
    tmp_path: Path, pipeline_of: Callable[..., dict[str, Any]], components: Any, family: str
) -> None:
    pipeline = pipeline_of(family, {}, algorithm="rloo")
    pipeline |= {"task": "chatter", "rewards": ["played"], "generation": HOW.model_dump(exclude_unset=True)}
    pipeline["train"] = {**pipeline["train"], "dtype": "float64"}
    pipeline.pop("evaluate", None)
    bench = Bench(tmp_path, pipeline, {**components, "chatter": Chatter})
    batch = bench.batch()
    assert bool((~batch.rollout.mask_NT).any()) and bool(batch.advantage_NT.any())
    ComponentTests().check_routes(bench, batch)
    _, gradients = plain_gradient(bench, batch)
    assert any(bool(gradient.any()) for gradient in gradients.values())


def again(policy: Any, rollout: Rollout) -> Rollout:
    """The same episodes, as logged responses of several turns."""
    ended = ends_of_turns(rollout, policy.ends)
    spoken = [
        Spoken(messages_of(said, ends))
        for said, ends in zip(rollout.columns["transcript"], ended, strict=True)
    ]
    read: Rollout = policy.encode(
        [replace(example, responses=(text,)) for example, text in zip(rollout.answered, spoken, strict=True)]
    )
    return read


def require_same(read: Rollout, rollout: Rollout) -> None:
    for i in range(len(rollout)):
        length = int(rollout.length_N[i])
        assert read.actions_NT[i, :length].tolist() == rollout.actions_NT[i, :length].tolist()
        assert read.mask_NT[i, :length].tolist() == rollout.mask_NT[i, :length].tolist()
        assert int(read.length_N[i]) == length


@pytest.mark.parametrize("family", ("gpt2", "bart"))
def test_an_episode_that_was_written_down_is_read_as_the_same_tokens(
    policy_of: Callable[..., Any], family: str
) -> None:
    policy = policy_of(family)
    policy.ends = (policy.end,)  # a word that ends a response would not be written down
    rollout = played(policy)
    special = torch.isin(rollout.actions_NT, torch.tensor([0, 1, 3])) & rollout.mask_NT
    whole = rollout.take(~special.any(1))  # a text does not spell padding, or what is unknown
    assert len(whole) > 4
    require_same(again(policy, whole), whole)


def spoken(told: Any, *, ended: bool = True) -> Spoken:
    """Two words, what was said to them, and another word."""
    asked = [{"role": "environment", "content": told}] if isinstance(told, str) else told
    first = {"role": "assistant", "content": "w1 w2", **({} if ended else {"cut": True})}
    return Spoken([first, *asked, {"role": "assistant", "content": "w3"}])


TOLD = " ".join(["w4"] * 44)
MESSAGES = [{"role": "user", "content": TOLD}]


@pytest.mark.parametrize("told", [TOLD, MESSAGES], ids=["text", "messages"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
def test_what_was_said_to_a_logged_response_counts_before_there_are_weights(
    folders: Mapping[str, Path], tmp_path: Path, told: Any, ended: bool
) -> None:
    """A row is as long as it is read; one that has no room beside its prompt is left out before the run."""
    from rlalign_plugin_hf import CausalLM

    path = Path(shutil.copytree(folders["llama"], tmp_path / "chat"))
    (path / "chat_template.jinja").write_text(TALK)
    examples = [
        Example("0", "w1 w2", responses=("w5 w6", spoken(told, ended=ended))),
        Example("1", " ".join(["w1"] * 17), responses=(spoken(told, ended=ended),)),
        Example("2", " ".join(["w1"] * 17), responses=("w1 w2 w3",)),
    ]
    policy = CausalLM(CausalLM.Config(path=str(path), too_long="drop"))
    policy.open()
    found = policy.lengths(examples)
    (place, why), *others = policy.refuse(examples, ["logged"]).items()
    assert place == 1 and not others
    assert f"prompt's 18 tokens and its logged response's {found[1][1][0]} are more than the model" in why
    policy.setup()
    assert policy.lengths(examples) == found
    assert policy.encode([examples[0], examples[2]]).length_N.tolist() == [*found[0][1], *found[2][1]]
    with pytest.raises(RLAlignError, match="example `1`: a prompt of 18"):
        policy.encode(examples)
    policy = CausalLM(CausalLM.Config(path=str(path)))
    policy.open()
    with pytest.raises(ConfigError, match="example `1`: its prompt's 18 tokens and its logged response's"):
        policy.refuse(examples, ["logged"])


# -- chat templates -------------------------------------------------------------------------------------------

TALK = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> w9 ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
FORGETS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}{{ 'assistant' + ' ' }}"
    "{{ m['content'].split('</think>')[-1] + ' </s> w9 ' }}{% else %}{{ m['role'] + ' ' + m['content'] + ' </s> w9 ' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


class Chat(Environment):
    """A conversation in messages."""

    class Config(Options):
        """No options."""

    turns, tokens = 3, 40

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("0", ""), Example("1", "")]

    def start(self, example: Example, start: Generator, noise: Generator) -> tuple[Episode, Turn]:
        return Chatting(), Turn([{"role": "user", "content": f"w1 w2 w{int(example.id) + 3}"}])


class Chatting:
    """One of these."""

    def step(self, text: str) -> Turn:
        return Turn([{"role": "user", "content": f"w{len(text) + 1} </s> w8"}])


def chatting(folders: Mapping[str, Path], folder: Path, written: str, **options: Any) -> Any:
    """A policy whose tokenizer has this chat template."""
    from rlalign_plugin_hf import CausalLM

    shutil.copytree(folders["llama"], folder)
    (folder / "chat_template.jinja").write_text(written)
    policy = CausalLM(CausalLM.Config(path=str(folder), **options))
    policy.setup()
    return policy.eval()


def talk(policy: Any, how: Sampling) -> Rollout:
    environment, seeds = Chat(Chat.Config()), Seeds(0)
    examples = environment.examples("train")
    uniforms = seeds.uniforms("u", positions=range(2), samples=how.samples, steps=environment.tokens)
    return sample(
        policy, examples, how, uniforms, game=Playing(environment, examples, how.samples, seeds.rng)
    )


def test_a_row_is_what_the_template_renders_of_the_whole_conversation(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Token for token, whether an answer ended by itself or was cut; control tokens that a message spells are text."""
    policy = chatting(folders, tmp_path / "chat", TALK)
    rollout = talk(policy, Sampling(samples=4, max_new_tokens=5))
    closed = set()
    for i, row in enumerate(rollout.columns["transcript"]):
        example = rollout.examples[int(rollout.group_N[i])]
        messages = list(example.prompt)
        for text, turn in row[:-1]:
            messages += [{"role": "assistant", "content": text}, *turn.say]
        length = int(rollout.length_N[i])
        turn_T, mask_T = rollout.columns["turn"][i, :length], rollout.mask_NT[i, :length]
        last_T = (turn_T == len(row) - 1) & mask_T
        before = rollout.actions_NT[i, :length][~last_T].tolist()
        for place in range(len(row) - 1):
            closed.add(int(rollout.actions_NT[i, :length][(turn_T == place) & mask_T][-1]) == 2)
        hidden, said = policy._reader.spelling.hidden(messages)
        whole = policy._reader.spelling.shown(policy._reader.rendered(hidden), said)
        ends = [end for end in policy.ends if end != 2]
        row_ids = [*rollout.inputs[int(rollout.group_N[i])].tolist(), *before]
        if not any(
            end in before for end in ends
        ):  # a word that ends a response is not the template's own end
            assert row_ids == whole
    assert closed == {True, False}
    plain = ~torch.isin(rollout.actions_NT, torch.tensor([0, 1, 3, *ends])).any(1)
    require_same(again(policy, rollout.take(plain)), rollout.take(plain))


def test_what_is_said_may_be_empty_or_hold_whatever_stands_for_an_answer(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    policy = chatting(folders, tmp_path / "chat", TALK)
    assert policy.given("", True).tolist() == policy.given([], True).tolist() == []
    say = [{"role": "user", "content": f"w1 {ANSWER} w2"}]
    assert len(policy.given(say, True)) == len(policy.given([{"role": "user", "content": "w1 w3 w2"}], True))


def test_a_template_that_writes_history_anew_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    policy = chatting(folders, tmp_path / "chat", FORGETS)
    with pytest.raises(ConfigError, match=r"writes an answer otherwise once.*template: as-said"):
        talk(policy, Sampling(samples=1, max_new_tokens=3))
    shutil.rmtree(tmp_path / "chat")
    policy = chatting(folders, tmp_path / "chat", FORGETS, template="as-said")
    assert int(talk(policy, Sampling(samples=1, max_new_tokens=3)).columns["turns"].min()) == 3


def checked(folder: Path, pipeline: Mapping[str, Any], environment: type[Environment]) -> str:
    """What `rlalign check` says."""
    known = registry({"environment": environment})
    return check(load_pipeline(folder / "pipeline.yaml", registry=known, text=json.dumps(pipeline)), known)


def test_a_check_begins_an_episode(
    folders: Mapping[str, Path], pipeline_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """It says what samples, and refuses a template, and rows longer than the model reads, before weights are loaded."""
    base = pipeline_of("llama", {"engine": "slots"}, task="environment", rewards=[])
    said = checked(tmp_path, base, Chatter)
    assert re.search(r"^  reward +played$", said, re.MULTILINE)
    assert "episodes of several turns by the sampling loop" in said
    shutil.copytree(folders["llama"], tmp_path / "chat")
    (tmp_path / "chat/chat_template.jinja").write_text(FORGETS)
    forgets = {**base, "policy": {"causal-lm": {"path": str(tmp_path / "chat")}}}
    with pytest.raises(ConfigError, match="writes an answer otherwise"):
        checked(tmp_path, forgets, Chat)
    long = type("Long", (Chatter,), {"tokens": 64})
    with pytest.raises(ConfigError, match=r"tokens of `environment`: .*64 leave no room for a prompt"):
        checked(tmp_path, base, long)
    with pytest.raises(ConfigError, match="a `logits` policy plays none"):
        checked(tmp_path, {**base, "policy": "logits"}, Chatter)


def test_a_row_longer_than_the_model_reads_is_refused(policy_of: Callable[..., Any]) -> None:
    policy = policy_of("gpt2")
    environment, seeds = Chatter(Chatter.Config()), Seeds(0)
    environment.tokens = 44
    examples = environment.examples("train")
    uniforms = seeds.uniforms("u", positions=range(3), samples=1, steps=44)
    with pytest.raises(RLAlignError, match=r"example `2`: a prompt of 6 .*or lower its `tokens`"):
        sample(policy, examples, Sampling(), uniforms, game=Playing(environment, examples, 1, seeds.rng))
