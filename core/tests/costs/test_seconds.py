"""The cost model gives back the table it was specified by, and the figures it was calibrated on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlalign.costs import seconds
from rlalign.costs.machines import parse
from rlalign.costs.shape import Shape, Work


def shape(weights: float, layers: int, keys: int) -> Shape:
    """Of a model that is nothing but so many weights: the equations as they were written down."""
    n = int(weights)
    return Shape(
        weights=n, learned=n, adapters=n // 200, prompt=n, response=n, head=0, layers=layers, width=1, vocabulary=1,
        cache=2 * layers * keys, block=n // layers, kept=1,
    )  # fmt: skip


SEVEN, EIGHT, SEVENTY = shape(7.62e9, 28, 512), shape(8.03e9, 32, 1024), shape(70.55e9, 80, 1024)


def work(prompts: int, response: int, longest: int, prompt: int = 256, samples: int = 8) -> Work:
    """With old log-probs and a reference, activations computed again."""
    return Work(prompts, samples, prompt, response, longest, recompute=True)


TABLE = [
    # model, machine, samplers' width, work, (rollout, score, train, sync, step), tokens/s/GPU, (halves, one step off)
    (SEVEN, "8xH100", 1, work(128, 512, 1024), (9.6, 6.7, 15.9, 2.7, 35), 2810, (58, 47)),
    (SEVEN, "8xH100", 1, work(128, 2048, 8192), (78, 20, 48, 2.7, 149), 1980, (227, 138)),
    (SEVENTY, "64xH100", 8, work(512, 512, 1024), (21, 31, 74, 3.1, 131), 377, (267, 231)),
    (SEVENTY, "64xH100", 8, work(512, 2048, 8192), (148, 94, 222, 3.1, 471), 313, (883, 657)),
]


@pytest.mark.parametrize(("of", "machine", "tensor", "what", "step", "rate", "split"), TABLE)
def test_the_table_it_was_specified_by(
    of: Shape, machine: str, tensor: int, what: Work, step: tuple[float, ...], rate: float, split: tuple[float, ...]
) -> None:  # fmt: skip
    """To 2 %, for rounding; the weights' way to a 70B sampler, whose equation there says less, to 0.4 s."""
    on = parse(machine)
    found = seconds.sharded(of, what, on, tensor=tensor)
    rollout, score, update, exchange, total = step
    assert found.rollout == pytest.approx(rollout, rel=0.02)
    assert found.score == pytest.approx(score, rel=0.02)
    assert found.update == pytest.approx(update, rel=0.02)
    assert found.exchange == pytest.approx(exchange, abs=0.4)
    assert found.total == pytest.approx(total, rel=0.02)
    assert what.tokens / on.count / found.total == pytest.approx(rate, rel=0.02)
    assert seconds.halves(of, what, on, tensor=tensor) == pytest.approx(split, rel=0.02)


def test_what_it_was_calibrated_on() -> None:
    """Llama-3.1-8B, 16 H100, 2,048 responses of 1,060 tokens, 100 of them taken to be the prompt; 4,096 at most."""
    what, on = work(2048, 960, 3996, prompt=100, samples=1), parse("16xH100")
    assert seconds.sharded(EIGHT, what, on).total == pytest.approx(76, rel=0.01)
    assert seconds.halves(EIGHT, what, on)[1] == pytest.approx(69, rel=0.02)


def test_more_devices_are_never_slower_and_longer_responses_never_faster() -> None:
    totals = [
        seconds.whole(SEVEN, work(128, 512, 1024), parse(f"{n}xH100")).rollout for n in (1, 2, 4, 8, 16)
    ]
    assert totals == sorted(totals, reverse=True)
    lengths = [seconds.whole(SEVEN, work(128, n, 4096), parse("8xH100")).total for n in (64, 512, 1024, 4096)]
    assert lengths == sorted(lengths)


def test_what_is_not_done_costs_nothing() -> None:
    idle = replace(work(128, 512, 1024), sampled=False, learns=False, passes=0)
    assert seconds.whole(SEVEN, idle, parse("8xH100")).total == 0


def test_adapters_spare_a_third_of_learning_and_prompts_once_their_share() -> None:
    what, on = replace(work(128, 512, 1024), recompute=False), parse("H100")
    whole = seconds.update(SEVEN, what, on)
    assert seconds.update(replace(SEVEN, learned=SEVEN.adapters), what, on) == pytest.approx(whole * 2 / 3)
    once = seconds.update(replace(SEVEN, once=True), what, on)
    assert once / whole == pytest.approx((256 / 8 + 512) / (256 + 512))


def test_attention_matters_where_responses_are_long() -> None:
    """28 layers of 28 heads of 128: under 3 % at 768 tokens, a fifth at 16,256."""
    attentive = replace(SEVEN, attention=28 * 28 * 128)
    for length, least, most in ((512, 1.0, 1.03), (16_128, 1.2, 1.25)):
        what = work(8, length, length)
        share = seconds.operations(attentive, what) / seconds.operations(SEVEN, what)
        assert least < share < most


def test_a_checkpoint_of_a_large_run() -> None:
    """14 bytes a weight at 2 GB/s a node: 99 GiB of 7.62B, 920 of 70.55B over eight nodes."""
    assert seconds.checkpoint(SEVEN, parse("8xH100")) == pytest.approx(99.4 * 2**30 / 2e9, rel=0.01)
    assert seconds.checkpoint(SEVENTY, parse("64xH100")) == pytest.approx(920 * 2**30 / 16e9, rel=0.01)
