"""What is said of installed packages is read once, and again when one comes, changes or goes."""

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from rlalign.packages import while_installed


def install(folder: Path, number: str) -> Path:
    info = folder / f"a_stranger-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-stranger\nVersion: {number}\n")
    return info


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    times: list[str] = []

    @while_installed
    def read(name: str) -> str | None:
        times.append(name)
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return read, times


def test_it_is_read_once(asked, tmp_path):
    install(tmp_path, "1")
    read, times = asked
    assert [read("a-stranger"), read("a-stranger"), read("rlalign")] == ["1", "1", version("rlalign")]
    assert times == ["a-stranger", "rlalign"]


def test_a_package_that_comes_changes_and_goes_is_seen(asked, tmp_path):
    read, _ = asked
    assert read("a-stranger") is None
    first = install(tmp_path, "1")
    assert read("a-stranger") == "1"
    shutil.rmtree(first)
    second = install(tmp_path, "2")
    assert read("a-stranger") == "2"
    shutil.rmtree(second)
    assert read("a-stranger") is None


def test_another_path_is_another_answer(asked, tmp_path, monkeypatch):
    read, _ = asked
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    install(elsewhere, "3")
    assert read("a-stranger") is None
    monkeypatch.syspath_prepend(str(elsewhere))
    assert read("a-stranger") == "3"
