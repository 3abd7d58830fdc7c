"""What `make release` refuses, and what it does to the changelog; `test_wheels.py` builds all packages."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from release.__main__ import _wrong_with_versions
from release.changelog import released
from release.wheels import ROOT, Fault, build, wrong_with_sources, wrong_with_wheel

LOG = (
    "# Changelog\n\nShape.\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n## 0.1.0 (2026-01-02)\n\n- First.\n"
)


def test_what_is_unreleased_becomes_a_section():
    text, section = released(LOG, "0.2.0", "2026-03-04")
    assert section == "## 0.2.0 (2026-03-04)\n\n### Added\n\n- A thing.\n"
    assert text == LOG.replace("## Unreleased\n", "## Unreleased\n\n## 0.2.0 (2026-03-04)\n")
    with pytest.raises(Fault, match="nothing stands under"):
        released(text, "0.3.0", "2026-03-05")
    with pytest.raises(Fault, match=r"has a section 0\.1\.0 already"):
        released(LOG, "0.1.0", "2026-03-04")


def test_the_changelog_of_now_can_be_released():
    text, section = released((ROOT / "CHANGELOG.md").read_text(), "9.9.9", "2026-03-04")
    assert section.count("\n- ") > 1 and "## 9.9.9 (2026-03-04)" in text


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "replay"
    shutil.copytree(ROOT / "plugins/sources/replay", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
def test_a_package_that_is_well_and_what_can_be_wrong_with_it(package, tmp_path):
    sources, wheel = sorted(build(package, tmp_path, sdist=True), key=lambda file: file.suffix)
    assert (sources.suffix, wheel.suffix) == (".gz", ".whl")
    assert [*wrong_with_sources(sources, package), *wrong_with_wheel(wheel, package)] == []

    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("rlalign_plugin_replay/notes.txt", "left here")
    assert "holds what is no source: rlalign_plugin_replay/notes.txt" in "".join(
        wrong_with_wheel(wheel, package)
    )

    (package / "runs").mkdir()
    (package / "runs/old.json").write_text("{}")
    spoiled = tmp_path / "spoiled.tar.gz"
    with tarfile.open(spoiled, "w:gz") as made:
        made.add(package, "replay-1")
    assert "holds runs/old.json" in "".join(wrong_with_sources(spoiled, package))
    (package / "src/rlalign_plugin_replay/new.py").write_text("")
    told = "".join([*wrong_with_wheel(wheel, package), *wrong_with_sources(sources, package)])
    assert told.count("new.py") == 2
    (package / "src/rlalign_plugin_replay/new.py").unlink()

    said = (package / "pyproject.toml").read_text()
    (package / "pyproject.toml").write_text(said.replace('version = "0.1.0"', 'version = "0.1.1"'))
    assert "Version is 0.1.0, expected 0.1.1" in "".join(wrong_with_wheel(wheel, package))
    assert list(_wrong_with_versions({package: [wheel]})) == [
        "rlalign-plugin-replay requires rlalign<0.2,>=0.1, and none is released"
    ]
