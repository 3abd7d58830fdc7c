"""A random number depends on the seed and on what it is for, on nothing else."""

import itertools

import pytest
import torch

from rlalign.randomness import Seeds


def draw(seeds: Seeds, *key: str | int) -> list[float]:
    return torch.rand(4, generator=seeds.rng(*key)).tolist()


def test_the_same_key_gives_the_same_numbers():
    assert draw(Seeds(7), "sample", 3) == draw(Seeds(7), "sample", 3)


def test_different_keys_and_seeds_give_different_numbers():
    keys = [
        (),
        ("a", 1),
        ("a1",),
        ("a", "1"),
        ("a,1",),
        ("a", 1, 0),
        (1, "a"),
        ('a", "1',),
        ("",),
        (-1,),
        (1,),
    ]
    numbers = [draw(Seeds(seed), *key) for seed in (0, 1) for key in keys]
    assert all(one != other for one, other in itertools.combinations(numbers, 2))


def test_a_key_of_another_type_is_refused():
    with pytest.raises(TypeError):
        Seeds(0).rng(torch.tensor(1))  # type: ignore[arg-type]


def test_uniforms_do_not_know_what_else_was_asked_for():
    seeds = Seeds(5)
    all_ = seeds.uniforms("sample", 2, positions=range(6), samples=4, steps=9)
    assert all_.shape == (6, 4, 9)
    assert all_.dtype == torch.float32
    some = seeds.uniforms("sample", 2, positions=range(3, 5), samples=2, steps=5)
    assert torch.equal(some, all_[3:5, :2, :5])
    assert not torch.equal(all_, seeds.uniforms("sample", 3, positions=range(6), samples=4, steps=9))
    assert all_.unique().numel() == all_.numel()


def test_uniforms_are_uniform_and_never_0_or_1():
    u = Seeds(0).uniforms("test", positions=range(100), samples=10, steps=1000).double().flatten()
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    chi2 = ((counts - 50_000) ** 2 / 50_000).sum()
    assert chi2 < 43.8  # 0.999 quantile for 19 degrees of freedom
    # neighbours in each direction are uncorrelated: 5 standard deviations
    u = u.reshape(100, 10, 1000) - 0.5
    for one, other in [(u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[:, :, 1:], u[:, :, :-1])]:
        assert (one * other).mean().abs() * 12 < 5 / one.numel() ** 0.5


def test_the_first_numbers_of_a_seed_stay_the_same():
    """Changing these makes every recorded run irreproducible."""
    u = Seeds(0).uniforms("sample", 0, positions=range(1), samples=1, steps=3)
    assert [round(x * 2**24) for x in u.flatten().tolist()] == [14237005, 16100173, 6152073]
    assert torch.randint(2**31, (1,), generator=Seeds(0).rng("shuffle")).item() == 843632096


def test_no_steps_or_positions_is_no_special_case():
    assert Seeds(0).uniforms(positions=range(0), samples=2, steps=3).shape == (0, 2, 3)
    assert Seeds(0).uniforms(positions=range(2), samples=2, steps=0).shape == (2, 2, 0)


def test_seed_forward_decides_dropout_and_rng_leaves_it_alone():
    seeds, x = Seeds(1), torch.ones(100)
    seeds.seed_forward("dropout", 4)
    first = torch.dropout(x, 0.5, train=True)
    seeds.seed_forward("dropout", 4)
    draw(seeds, "other")
    seeds.uniforms("other", positions=range(1), samples=1, steps=1)
    assert torch.equal(torch.dropout(x, 0.5, train=True), first)
    seeds.seed_forward("dropout", 5)
    assert not torch.equal(torch.dropout(x, 0.5, train=True), first)
