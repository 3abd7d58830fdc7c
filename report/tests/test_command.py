"""The commands, on runs of `rlalign run` and on folders as it writes them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from rlalign_report.command import report

from .written import HOSTILE, evaluation, iteration, sample, whole, written


def data_of(page):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return json.loads(text)


def test_a_real_run_becomes_a_page_without_torch(bandit, tmp_path):
    out = tmp_path / "page.html"
    code = (
        "import sys\nfrom rlalign_report.command import report\n"
        f"report([{str(bandit)!r}, '-o', {str(out)!r}], standalone_mode=False)\n"
        "sys.exit(3 * any(name in sys.modules for name in ('torch', 'scipy', 'plotly', 'matplotlib')))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert str(out) in said.stdout
    (run,) = data_of(out)["runs"]
    assert (run["algorithm"], run["task"], run["state"], run["iterations"]) == (
        "rloo",
        "bandit",
        "finished",
        12,
    )
    assert run["best"]["name"] == "eval/bandit-payout" and len(run["samples"]["evaluations"]) == 4
    assert ["seed", "0"] in run["provenance"][0]["rows"]


def test_no_text_of_a_run_leaves_its_place(tmp_path):
    folder = written(
        tmp_path / "run",
        [*whole(), iteration(41, **{HOSTILE: 1.0}), evaluation(41, **{f"eval/{HOSTILE}": 1.0})],
        [sample(0, HOSTILE, HOSTILE, scores={HOSTILE: 1.0}), sample(40, HOSTILE, "@SCRIPT@ @DATA@")],
        task=HOSTILE,
    )
    out = tmp_path / "page.html"
    said = CliRunner().invoke(report, [str(folder), "-o", str(out)])
    assert said.exit_code == 0, said.output
    text = out.read_text()
    assert len(re.findall(r"<script", text)) == 3 and "<img" not in text
    data = data_of(out)
    assert data["runs"][0]["samples"]["prompts"] == [HOSTILE]
    shell = re.sub(r'<script type="[^"]+" id="\w+">.*?</script>', "", text, flags=re.DOTALL)
    for banned in ("http:", "https:", "//cdn", "src=", "@import", "url(", "innerHTML", "eval(", "@DATA@"):
        assert banned not in shell, banned
    assert "connect-src 'none'" in shell and "default-src 'none'" in shell


def test_pictures(tmp_path):
    folder = written(tmp_path / "run", [*whole(), iteration(41, **{"odd/$cost$": 1.0})])
    arguments = [str(folder), "-o", str(tmp_path / "p.html"), "--plots", str(tmp_path / "plots")]
    said = CliRunner().invoke(report, [*arguments, "--format", "svg", "--format", "png"])
    assert said.exit_code == 0, said.output
    made = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"reward.svg", "reward.png", "other.svg", "evaluation.png"} <= made
    assert "reward/total" in (tmp_path / "plots/reward.svg").read_text()
    first = (tmp_path / "plots/reward.svg").read_bytes()
    CliRunner().invoke(report, arguments)
    assert (tmp_path / "plots/reward.svg").read_bytes() == first


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["nowhere"], "there is no such run"),
        (["run", "run"], "named twice"),
        (["run", "-o", "no/such/folder/page.html"], "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, arguments, told):
    written(tmp_path / "run", whole())
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(report, arguments)
    assert said.exit_code == 2 and told in said.output
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_a_large_run_stays_a_page(tmp_path):
    """10,000 iterations and 20 MB of samples: what is left out is said."""
    rows = (iteration(n, **{f"plugin/figure-{i}": n * i for i in range(10)}) for n in range(1, 10_001))
    words = (sample(n, f"p{i}", "word " * 500) for n in range(0, 10_000, 20) for i in range(16))
    folder = written(tmp_path / "run", rows, words)
    said = CliRunner().invoke(report, [str(folder), "-o", str(tmp_path / "page.html")])
    assert said.exit_code == 0 and "the mean of 13 iterations" in said.output
    assert (tmp_path / "page.html").stat().st_size < 6_000_000
    (run,) = data_of(tmp_path / "page.html")["runs"]
    assert "40 of 500 evaluations are shown" in run["samples"]["left_out"]
