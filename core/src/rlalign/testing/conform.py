"""`rlalign plugins --conform NAME`: the tests that its kind inherits, for a component that is installed.

    python -m rlalign.testing.conform NAME OPTIONS DECLARED

It runs in a process of its own, as the tests look at random numbers, threads and settings of the whole process.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from rlalign.config.outline import sentence
from rlalign.config.places import value
from rlalign.config.registry import Loaded, Registry, kind
from rlalign.config.validate import check
from rlalign.config.words import found, unknown
from rlalign.errors import ConfigError, RLAlignError, shown
from rlalign.interface.environment import Environment
from rlalign.running.members import implements
from rlalign.testing import (
    ComponentTests,
    EnvironmentTests,
    PolicyTests,
    RewardTests,
    SamplerTests,
    TaskTests,
    ValueTests,
)

MODULE = """
from rlalign.testing import {kit} as Kit

class TestIt(Kit):
    component = {name!r}
    options = {options!r}
"""


@dataclass
class Found:
    """What became of each test: of those that failed or did not apply, why."""

    checked: list[str] = field(default_factory=list)
    inapplicable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::test_")[2].replace("_", " ")
        if report.skipped:
            self.inapplicable[name] = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = str(crash.message if crash else report.longrepr).partition("\nassert ")[0]
        elif report.when == "call":
            self.checked.append(name)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed["its tests can be collected"] = str(report.longrepr)


def kit_of(name: str, loaded: Loaded, options: Mapping[str, Any]) -> type[ComponentTests]:
    """The tests for a component of this kind."""
    what = kind(loaded.cls)
    if what == "sampler":
        return SamplerTests
    if what in ("policy", "value"):
        return PolicyTests if what == "policy" else ValueTests
    if what == "task":
        return EnvironmentTests if issubclass(loaded.cls, Environment) else TaskTests
    made = loaded.cls(loaded.cls.Config.model_validate_json(json.dumps(dict(options))))
    scores = any(implements(made, hook) == "plain" for hook in ("reward", "evaluate"))
    learns = any(implements(made, hook) for hook in ("loss", "update", "advantage", "rollout"))
    return RewardTests if scores and not learns else ComponentTests


def conform(
    name: str, options: Mapping[str, Any], declared: Mapping[str, Any]
) -> tuple[type[ComponentTests], Found]:
    """Run them; `declared` is what a test class of its own would say beside `component` and `options`."""
    loaded, wrong = Registry().load(name), []
    check(
        loaded.cls.Config,
        options,
        Path.cwd(),
        lambda keys, text: wrong.append(f"{'.'.join([name, *map(str, keys)])}: {text}"),
    )
    if wrong:
        raise ConfigError("\n".join([*wrong, "say what it needs with --options '{…}'"]))
    kit, told = kit_of(name, loaded, options), Found()
    said = {one for cls in kit.__mro__ for one in vars(cls).get("__annotations__", {})}
    known = sorted(said - {"component", "options"})
    if foreign := [one for one in declared if one not in known]:
        raise ConfigError(f"--declare: {foreign[0]}: {unknown('attribute', foreign[0], known)}")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        tests = Path(folder, "test_it.py")
        module = MODULE.format(kit=kit.__name__, name=name, options=dict(options))
        module += "".join(f"    {one} = {given!r}\n" for one, given in declared.items())
        tests.write_text(module, encoding="utf-8")
        settings = Path(folder, "pytest.ini")
        settings.write_text("[pytest]\n")
        asked = ["-q", "-p", "no:cacheprovider", "-c", str(settings), "--import-mode=importlib", str(tests)]
        pytest.main(asked, plugins=[told])
    return kit, told


def report(
    name: str,
    options: Mapping[str, Any],
    declared: Mapping[str, Any],
    kit: type[ComponentTests],
    told: Found,
) -> str:
    """In words, with the badge."""
    with_ = json.dumps(dict(options), ensure_ascii=False) if options else "its defaults"
    lines = [f"{name}, options: {with_}"]
    lines += [f"declared: {json.dumps(dict(declared), ensure_ascii=False)}"] if declared else []
    lines += [f"{kit.__name__}: {sentence(sys.modules[kit.__module__].__doc__)}", ""]
    lines += ["checked", *(f"  {test}" for test in told.checked)]
    for title, tests in (("not applicable", told.inapplicable), ("failed", told.failed)):
        lines += ["", title] if tests else []
        lines += [f"  {test}: {why}" for test, why in tests.items()]
    counts = (
        f"{len(told.checked)} checked, {len(told.inapplicable)} not applicable, {len(told.failed)} failed"
    )
    lines += ["", counts]
    if told.checked and not told.failed:
        core = version("rlalign")
        passed = f"{name.replace('-', '--')}-{len(told.checked)}_checks_of_rlalign_{core}-brightgreen"
        lines += [f"badge: ![{name}: {counts}, rlalign {core}](https://img.shields.io/badge/{passed})"]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, 1 where a test failed, 2 where there is nothing to test."""
    name, options_said, declared_said = arguments
    try:
        options, declared = _mapping(options_said, "--options"), _mapping(declared_said, "--declare")
        kit, told = conform(name, options, declared)
    except RLAlignError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    print(shown(report(name, options, declared, kit, told)))
    return 1 if told.failed or not told.checked else 0


def _mapping(said: str, option: str) -> dict[str, Any]:
    read = value(said, option)
    if not isinstance(read, dict):
        raise ConfigError(f"{option}: expected a mapping, `{{name: value}}`, found {found(read)}")
    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
