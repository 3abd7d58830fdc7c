"""Several processes that share a batch, and processes of a cluster: the scores of one, whatever happens to some."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlalign.cli.commands import program
from rlalign.config.pipeline import Isolate
from rlalign.errors import ComponentError

sys.path.insert(0, str(Path(__file__).parent))
from serving_bench import isolated, rollout, run

pytestmark = pytest.mark.usefixtures("nearby")
TEXTS = ["a bc", "d", "", "efg hi", "jk", "l" * 30, "m", "no", "pqr", "s"]


@pytest.mark.parametrize("where", [pytest.param({}, marks=pytest.mark.slow), {"cluster": "nearby"}])
def test_two_processes_give_what_one_gives_also_where_one_dies(where: dict[str, str], tmp_path: Path) -> None:
    given = rollout(TEXTS, samples=2)
    expected = [float(len(text)) for text in TEXTS]
    once = tmp_path / "once"
    options = {"once": once, "always": "killed"}
    with isolated("Misbehaves", options=options, workers=2, retries=1, seconds=60, **where) as several:
        several.setup(run())
        assert several.reward(run=run(), rollout=given).value.tolist() == expected
        assert once.exists()


def test_what_hangs_in_a_cluster_is_ended_and_told() -> None:
    with isolated("Misbehaves", cluster={"nearby": {}}, seconds=1, retries=0) as one:
        one.setup(run())
        with pytest.raises(ComponentError) as caught:
            one.reward(run=run(), rollout=rollout(["hangs"]))
        assert "in a process of its own on nearby, p.yaml:3: it did not answer within 1 seconds" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"cluster": "near"}, "no cluster named `near` is installed; did you mean `nearby`?"),
        ({"cluster": "broken"}, "`broken` cannot be imported: ModuleNotFoundError"),
        ({"cluster": {"nearby": {"code": "x"}}}, "cluster.nearby.code: expected a whole number, found 'x'"),
        ({"cluster": {"nearby": {}, "x": {}}}, "expected the name of a cluster"),
        ({"cluster": "nearby", "memory": 1}, "leave it out beside `cluster`"),
        ({"at": "a:1", "memory": 1}, "leave it out beside `at`"),
        ({"at": "a:1", "workers": 2}, "`at` names a server, which is one process"),
        ({"at": "a:1", "workers": {"most": 2}}, "`at` names a server, which is one process"),
        ({"workers": {"least": 3, "most": 2}}, "`least: 3` is more than `most: 2`"),
    ],
)
def test_what_makes_no_sense_is_refused(said: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Isolate.model_validate(said)
    assert why in str(caught.value)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rlalign", "run", *arguments])
        done = CliRunner().invoke(program, ["run", *arguments])
        return done.exit_code, done.output

    return call


def test_a_run_on_a_cluster_is_named_and_found_again(
    tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "runs/p").mkdir(parents=True)
    assert command("p.yaml", "a=1", "--processes", "3", "--on", "nearby://there:1")[0] == 0
    first = "run p.yaml a=1 --name p-2"
    assert (tmp_path / "launched").read_text().splitlines() == ["there:1", "3", first, f"{first} --or-resume"]
    assert command("p.yaml", "--on", "nearby: {code: 7}", "--name", "x")[0] == 7
    launched = (tmp_path / "launched").read_text().splitlines()
    assert (
        launched[1] == "1"
        and launched[2].endswith("--name x")
        and launched[3].endswith("--name x --or-resume")
    )
    assert command("--resume", "runs/p", "--on", "nearby")[0] == 0
    assert (tmp_path / "launched").read_text().splitlines()[2:] == ["run --resume runs/p"] * 2
    code, said = command("--resume", "runs/p", "--extend", "3", "--on", "nearby")
    assert code == 2 and "train.iterations" in said
    assert command("p.yaml", "--on", "nowhere")[0] == 2
