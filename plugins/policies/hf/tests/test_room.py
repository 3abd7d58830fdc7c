"""Prompts and responses that a model's positions do not hold are found before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LEDConfig

import rlalign
from rlalign import Example, LazyExamples, Options, Task
from rlalign.errors import ConfigError
from rlalign.interface.policy import NoRoom
from rlalign.running.opening import open_run
from rlalign.testing import registry, run
from rlalign_plugin_hf import CausalLM, Seq2SeqLM
from rlalign_plugin_hf.positions import Positions

Pipeline = Callable[..., dict[str, Any]]


def words(count: int, first: int = 3) -> str:
    return " ".join(f"w{(first + i) % 10}" for i in range(count))


class Rows(Task):
    """Three short rows and a long one, in the split that is asked for."""

    class Config(Options):
        long: int = 33
        split: str = "train"
        place: int = 3
        answer: int = 1
        size: int = 4

    config: Config

    def examples(self, split: str) -> Sequence[Example]:
        here = split == self.config.split
        return [
            Example(
                str(i),
                words(self.config.long if here and i == self.config.place else 2),
                responses=(words(self.config.answer), "w4"),
                scores=(1.0, 0.0),
            )
            for i in range(self.config.size)
        ]


COMPONENTS: Mapping[str, type[Any]] = {"rows": Rows}


@pytest.fixture
def rows_of(pipeline_of: Pipeline, components: Mapping[str, type[Any]]) -> Callable[..., Any]:
    def make(
        tmp_path: Path,
        family: str,
        task: Mapping[str, Any] = {},
        policy: Mapping[str, Any] = {},
        **parts: Any,
    ) -> Any:
        given = {
            "generation": {"samples": 2, "max_new_tokens": 16},
            "train": {"passes": 1, "prompts": 1, "lr": 1e-3},
            **parts,
        }
        pipeline = pipeline_of(family, policy, task={"rows": dict(task)}, **given)
        return run(tmp_path, pipeline, {**components, **COMPONENTS})

    return make


LEFT = (
    r"example `3`: its prompt's 33 tokens are more than the 32 that `max_new_tokens: 16` leaves: "
    r"the model reads 48 tokens \(`n_positions` in its config\.json\); `too_long: drop`"
)


def test_a_long_prompt_is_refused_before_anything_is_trained(tmp_path: Path, rows_of: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"pipeline.*: policy `causal-lm`, reading the prompts of `train`: " + LEFT
    ):
        rows_of(tmp_path, "gpt2")
    assert not list(tmp_path.rglob("checkpoints")), "no run was begun"
    _, done = rows_of(tmp_path, "gpt2", {"long": 32})
    assert done.phase.iteration == 4, "a prompt that just fits is trained on"


def test_it_is_left_out_or_cut_where_that_is_asked_for(tmp_path: Path, rows_of: Any) -> None:
    _, done = rows_of(tmp_path / "drop", "gpt2", policy={"too_long": "drop"})
    assert done.phase.iteration == 3
    (note,) = [note for note in done.display.notes if "leaves out" in note]
    assert note.startswith(
        "policy `causal-lm` leaves out 1 of 4 examples of `train`; the first is `3`: its prompt's 33"
    )
    _, done = rows_of(tmp_path / "cut", "gpt2", policy={"too_long": "truncate"})
    assert done.phase.iteration == 4
    assert len(done.models.policy.prompts([Example("x", words(40))])[0]) == 32


def test_an_explicit_limit_above_what_is_left_does_not_help(tmp_path: Path, rows_of: Any) -> None:
    with pytest.raises(ConfigError, match=LEFT):
        rows_of(tmp_path, "gpt2", policy={"max_prompt_tokens": 40})
    _, done = rows_of(tmp_path, "gpt2", policy={"max_prompt_tokens": 40, "too_long": "truncate"})
    assert len(done.models.policy.prompts([Example("x", words(60))])[0]) == 32


def test_the_longest_response_of_any_phase_or_evaluation_counts(tmp_path: Path, rows_of: Any) -> None:
    short = {"samples": 2, "max_new_tokens": 8}
    rows_of(tmp_path, "gpt2", generation=short)
    evaluate = {"examples": 2, "generation": {"max_new_tokens": 16, "greedy": True}}
    with pytest.raises(ConfigError, match=LEFT):
        rows_of(tmp_path, "gpt2", generation=short, evaluate=evaluate)
    later = {"name": "later", "generation": {"max_new_tokens": 16}}
    with pytest.raises(ConfigError, match=LEFT):
        rows_of(tmp_path, "gpt2", generation=short, phases=[{"name": "first"}, later])


def test_the_split_of_an_evaluation_is_looked_at_as_far_as_it_is_read(tmp_path: Path, rows_of: Any) -> None:
    task, evaluate = {"split": "val"}, {"examples": 4}
    with pytest.raises(ConfigError, match="the prompts of `val`: " + LEFT):
        rows_of(tmp_path, "gpt2", task, evaluate=evaluate)
    rows_of(tmp_path / "three", "gpt2", task, evaluate={"examples": 3})
    task = {"split": "val", "place": 0, "size": 6}
    _, done = rows_of(tmp_path / "drop", "gpt2", task, {"too_long": "drop"}, evaluate={"examples": 4})
    asked = [json.loads(line) for line in (done.dir.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval/responses"] for row in asked if "eval/responses" in row] == [4, 4]


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_logged_responses_must_fit_beside_their_prompts(tmp_path: Path, rows_of: Any, algorithm: str) -> None:
    parts = {"algorithm": algorithm, "rewards": None, "responses": "logged"}
    told = (
        r"example `3`: its prompt's 33 tokens and its logged response's 16 are more than the model reads: 48 tokens "
        r"\(`n_positions` in its config.json\)"
    )
    with pytest.raises(ConfigError, match=told):
        rows_of(tmp_path, "gpt2", {"answer": 15}, **parts)
    rows_of(tmp_path / "fits", "gpt2", {"answer": 14}, **parts)  # and its end
    _, done = rows_of(tmp_path / "drop", "gpt2", {"answer": 15}, {"too_long": "drop"}, **parts)
    assert done.phase.iteration == 3
    cut = {"too_long": "truncate", "max_prompt_tokens": 32}
    rows_of(tmp_path / "cut", "gpt2", {"answer": 15}, cut, **parts)


def test_where_nothing_is_sampled_its_length_does_not_count(tmp_path: Path, rows_of: Any) -> None:
    parts = {"algorithm": "sft", "rewards": None, "generation": {"max_new_tokens": 48}}
    rows_of(tmp_path, "gpt2", {"answer": 14}, **parts)


@pytest.mark.parametrize(
    ("family", "long", "fits", "told"),
    [
        ("llama", 33, 31, "the 32 that `max_new_tokens: 16` leaves: the model reads 48 tokens"),
        ("bart", 48, 46, r"its encoder reads: 48 tokens \(`max_position_embeddings`"),
    ],
)
def test_other_families(
    tmp_path: Path, folders: Mapping[str, Path], rows_of: Any, family: str, long: int, fits: int, told: str
) -> None:
    """Rotary positions count, though a model might go on; an encoder has rows of its own."""
    path = Path(shutil.copytree(folders[family], tmp_path / "model"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 48}))
    with pytest.raises(ConfigError, match=f"more than {told}"):
        rows_of(tmp_path, family, {"long": long}, {"path": str(path)})
    rows_of(tmp_path, family, {"long": fits}, {"path": str(path)})


def test_relative_positions_bound_nothing(tmp_path: Path, rows_of: Any) -> None:
    rows_of(tmp_path, "t5", {"long": 200})


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("gpt2", "`causal-lm`: 48 leave no room for a prompt: the model reads 48 tokens"),
        ("bart", r"`seq2seq-lm`: 48 are more than the decoder reads: 48 tokens .*; ask for at most 47"),
    ],
)
def test_more_new_tokens_than_there_are_positions(
    tmp_path: Path, rows_of: Any, family: str, told: str
) -> None:
    with pytest.raises(ConfigError, match="generation.max_new_tokens: policy " + told):
        rows_of(tmp_path, family, generation={"samples": 2, "max_new_tokens": 48})


def test_a_value_reads_on_behind_the_longest_response(tmp_path: Path, rows_of: Any) -> None:
    generation = {"samples": 1, "max_new_tokens": 47, "min_new_tokens": 47}
    rows_of(tmp_path, "bart", algorithm="ppo", generation=generation)


def test_a_forced_first_token_takes_a_position_of_the_decoder(
    tmp_path: Path, folders: Mapping[str, Path]
) -> None:
    path = Path(shutil.copytree(folders["bart"], tmp_path / "model"))
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "forced_bos_token_id": 5}))
    policy = Seq2SeqLM(Seq2SeqLM.Config(path=str(path)))
    policy.new_tokens = 48
    with pytest.raises(NoRoom, match="ask for at most 47"):
        policy.setup()


def test_an_encoder_and_a_decoder_of_different_length() -> None:
    config = LEDConfig(max_encoder_position_embeddings=64, max_decoder_position_embeddings=16)
    positions = Positions(config, "seq2seq")
    assert [positions.room(count) for count in (1, 15, 16)] == [64, 64, 0]
    assert str(positions) == (
        "its encoder reads 64 tokens (`max_encoder_position_embeddings` in its config.json), its decoder "
        "16 tokens (`max_decoder_position_embeddings` in its config.json)"
    )


def test_what_surely_fits_is_not_tokenized(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """One token a character is the most that text of ASCII has; other text is counted."""
    AutoConfig.from_pretrained(folders["gpt2"], n_positions=10_000).save_pretrained(tmp_path)
    policy = CausalLM(CausalLM.Config(path=str(tmp_path), tokenizer=str(folders["gpt2"]), init="random"))
    policy.new_tokens = 100
    policy.open()
    counted: list[int] = []
    count = policy._reader._lengths
    policy._reader._lengths = lambda texts, **how: (counted.append(len(texts)), count(texts, **how))[1]

    class Many(LazyExamples):
        def __len__(self) -> int:
            return 1000

        def example(self, index: int) -> Example:
            text = {5: "ä " * 5000, 6: "w1 " * 9000, 7: "", 8: words(200)}.get(index, "w1 w2")
            return Example(str(index), text, responses=("w3",))

    policy._reader.config = policy.config.model_copy(update={"too_long": "drop"})
    assert list(policy.refuse(Many(), ["sampled", "logged"])) == [7]
    assert sum(counted) == 3 + 2, (
        "three prompts that may not fit, and the responses of those that are not empty"
    )


def test_what_is_asked_of_an_opened_run_counts(tmp_path: Path, rows_of: Any, components: Any) -> None:
    """A prompt beside the response that is asked for; beside a response that is given, what there is."""
    _, done = rows_of(tmp_path, "gpt2", {"long": 2}, evaluate={"examples": 2})
    known = registry({**components, **COMPONENTS})
    opened = open_run(done.dir.path, {}, registry=known)
    with pytest.raises(ConfigError, match=r"example `prompt-2`: its prompt's 40 tokens are more than the 32"):
        opened.sample(["w1", words(40)])
    assert len(opened.score([words(40)], ["w1 w2"], rewards=False)) == 1
    with pytest.raises(ConfigError, match="its prompt's 40 tokens and its logged response's 9"):
        opened.score([words(40)], [words(8)], rewards=False)


def test_a_model_that_never_saw_this_pipeline_counts_what_evaluation_asks(
    folders: Mapping[str, Path],
) -> None:
    opened = rlalign.open(
        folders["gpt2"],
        {"evaluate.generation.max_new_tokens": 8},
        task={"toy-numbers": {"prompt": words(40)}},
    )
    assert len(opened.sample([words(40)])) == 1


def test_a_model_by_itself_answers_with_as_many_tokens_as_it_has_room_for(
    folders: Mapping[str, Path],
) -> None:
    """Fewer than is usual; not fewer than was asked for."""
    (row,) = rlalign.open(folders["gpt2"]).sample(["w1 w2"])
    assert row["response"]
    with pytest.raises(ConfigError, match="60 leave no room for a prompt"):
        rlalign.open(folders["gpt2"], {"evaluate.generation.max_new_tokens": 60})


def test_what_an_evaluation_reads_of_logged_responses_is_looked_at_too(tmp_path: Path, rows_of: Any) -> None:
    parts = {"algorithm": "sft", "rewards": None, "responses": "logged"}
    evaluate = {"split": "val", "use": ["held-out"], "examples": 4}
    task = {"split": "val", "long": 30, "answer": 40}
    with pytest.raises(ConfigError, match="its prompt's 30 tokens and its logged response's 41"):
        rows_of(tmp_path, "gpt2", task, evaluate=evaluate, **parts)
    assert not list((tmp_path / "runs").glob("*"))
