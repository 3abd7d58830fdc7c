"""Finding components: what is installed, what a pipeline names, and every way it can go wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from rlalign.config.registry import Installed, Registry, installed, kind
from rlalign.data.settings import Options
from rlalign.errors import ConfigError
from rlalign.interface.component import Component, Task

COMPONENT = "from rlalign import Component\nclass Thing(Component): pass\n"


class Own(Component):
    pass


class OwnTask(Task):
    pass


@pytest.fixture(autouse=True)
def closed(tmp_path_factory, tmp_path, monkeypatch):
    """The registry under test sees what a test installs. A stranger that is installed too is there to be unseen."""
    stranger = tmp_path_factory.mktemp("stranger")
    names = ["quux-ones", "zzqqx", "corg", "thing-d", "thing-f"]
    metadata(stranger, "rlalign-plugin-stranger", "1.0", dict.fromkeys(names, "no_such_module:Thing"))
    monkeypatch.syspath_prepend(stranger)
    assert {one.name for one in installed()} >= set(names)

    def seen(group: str) -> list[EntryPoint]:
        points = entry_points(group=group)
        return [point for point in points if Path(str(point.dist.locate_file(""))).is_relative_to(tmp_path)]

    monkeypatch.setattr("rlalign.config.registry.entry_points", seen)
    monkeypatch.syspath_prepend(tmp_path_factory.mktemp("empty"))  # so that what was seen above is read again


def metadata(folder: Path, name: str, version: str, points: dict[str, str]) -> None:
    """What an install writes of a distribution's entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    (info / "entry_points.txt").write_text(f"[rlalign]\n{lines}")


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Makes an installed distribution out of metadata and one module."""

    def make(name: str, points: dict[str, str], version="1.0", site="site", **modules: str) -> Path:
        folder = tmp_path / site
        metadata(folder, name, version, points)
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        return folder

    return make


def refusal(registry: Registry, name: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        registry.load(name, folder)
    return str(caught.value)


def test_installed_lists_offers_without_importing(distribution):
    distribution("some-plugin", {"thing-a": "no_such_module_a:Thing"}, version="0.3")
    assert Installed("thing-a", "some-plugin", "0.3", "no_such_module_a:Thing") in installed()


def test_listing_needs_no_torch():
    code = "import sys, rlalign.config.registry as r; r.installed(); print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert ran.stdout.strip() == "False"


def test_loads_only_what_is_named(distribution):
    points = {"thing-b": "thing_b:Thing", "broken-b": "broken_b:Thing"}
    distribution("some-plugin", points, thing_b=COMPONENT, broken_b="raise RuntimeError('loaded')")
    loaded = Registry().load("thing-b")
    assert loaded.cls.__name__ == "Thing"
    assert str(loaded.installed) == "some-plugin 1.0"
    assert "broken_b" not in sys.modules


def test_ctrl_c_comes_once_an_import_is_done(distribution):
    """Half a module would fail later, as something else."""
    text = "import signal\nsignal.raise_signal(signal.SIGINT)\nhalf = True\n" + COMPONENT
    distribution("some-plugin", {"thing-w": "thing_w:Thing"}, thing_w=text)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Registry().load("thing-w")
    assert sys.modules["thing_w"].Thing and signal.getsignal(signal.SIGINT) is before
    assert Registry().load("thing-w").cls.__name__ == "Thing"


def test_components_handed_in_come_first(distribution):
    distribution("some-plugin", {"own": "no_such_module_c:Thing"})
    loaded = Registry({"own": Own}).load("own")
    assert (loaded.cls, loaded.installed) == (Own, None)


def test_unknown_name_gives_the_closest(distribution):
    distribution("some-plugin", {"quux-one": "m:Thing"})
    message = refusal(Registry({"corge": Own}), "quxx-one")
    assert message == "no component named `quxx-one` is installed; did you mean `quux-one`?"
    assert refusal(Registry({"corge": Own}), "corgi").endswith("did you mean `corge`?")


def test_unknown_name_like_nothing_else_says_what_to_do():
    message = refusal(Registry(), "zzqqxx")
    assert "`rlalign plugins` lists those that are" in message
    assert "pip install" not in message  # whoever owns that name


def test_two_distributions_with_one_name(distribution):
    distribution("dist-a", {"thing-d": "thing_da:Thing"}, thing_da=COMPONENT)
    distribution("dist_b", {"thing-d": "thing_db:Thing"}, version="2.0", thing_db=COMPONENT)
    message = refusal(Registry(), "thing-d")
    assert "dist-a 1.0" in message
    assert "dist_b 2.0" in message
    assert "`dist-a:thing-d`" in message
    assert Registry().load("dist-a:thing-d").cls.__module__ == "thing_da"
    assert Registry().load("dist-b:thing-d").cls.__module__ == "thing_db"
    assert Registry().load("dist_b:thing-d").installed == Installed(
        "thing-d", "dist_b", "2.0", "thing_db:Thing"
    )


def test_distribution_without_that_component(distribution):
    distribution("dist-e", {"thing-e": "m:Thing"})
    assert refusal(Registry(), "dist-e:other") == ("dist-e 1.0 has no component `other` (it has: thing-e)")


def test_one_distribution_with_two_metadata_folders_is_no_conflict(distribution):
    distribution("dist-f", {"thing-f": "thing_f:Thing"}, site="editable", thing_f=COMPONENT)
    distribution("dist_f", {"thing-f": "thing_f:Thing"}, site="wheel", version="0.9")
    assert Registry().load("thing-f").cls.__module__ == "thing_f"
    assert [one.name for one in installed()].count("thing-f") == 1


def test_import_error_names_component_distribution_version_and_cause(distribution):
    distribution("dist-g", {"thing-g": "thing_g:Thing"}, version="0.3", thing_g="import no_such_foo")
    message = refusal(Registry(), "thing-g")
    assert message == (
        "`thing-g` (dist-g 0.3) cannot be imported: ModuleNotFoundError: No module named 'no_such_foo'; "
        "`pip check` tells which packages it requires and are not installed"
    )


def test_any_exception_while_importing_is_reported(distribution):
    distribution("dist-h", {"thing-h": "thing_h:Thing"}, thing_h="1 / 0")
    message = refusal(Registry(), "thing-h")
    assert "ZeroDivisionError: division by zero; the fault lies in dist-h" in message


def test_missing_attribute_of_an_entry_point(distribution):
    distribution("dist-i", {"thing-i": "thing_i:Thing"}, thing_i="")
    assert "AttributeError" in refusal(Registry(), "thing-i")


def test_class_from_a_module_in_the_pipelines_folder(distribution, tmp_path):
    (tmp_path / "mine_j.py").write_text(COMPONENT)
    before = list(sys.path)
    loaded = Registry(trust=True).load("mine_j:Thing", tmp_path)
    assert loaded.cls.__module__ == "mine_j"
    assert loaded.installed is None
    assert sys.path == before


def test_path_is_restored_when_the_import_fails(distribution, tmp_path):
    (tmp_path / "mine_k.py").write_text(COMPONENT + "raise KeyError('k')")
    before = list(sys.path)
    assert "`mine_k:Thing` cannot be imported: KeyError: 'k'" in refusal(
        Registry(trust=True), "mine_k:Thing", tmp_path
    )
    assert sys.path == before


def test_module_that_misses_something_it_imports(distribution, tmp_path):
    (tmp_path / "mine_l.py").write_text(COMPONENT + "import no_such_foo")
    message = refusal(Registry(trust=True), "mine_l:Thing", tmp_path)
    assert "ModuleNotFoundError: No module named 'no_such_foo'" in message


def test_no_such_module(tmp_path):
    message = refusal(Registry(trust=True), "nowhere:Thing", tmp_path)
    assert "`nowhere` is neither an installed distribution with components nor a module" in message
    assert str(tmp_path) in message
    assert refusal(Registry(trust=True), "nowhere.py:Thing").endswith("leave out `.py`")


def test_no_such_class(distribution, tmp_path):
    (tmp_path / "mine_m.py").write_text(COMPONENT)
    message = refusal(Registry(trust=True), "mine_m:Thong", tmp_path)
    assert (
        message
        == "`mine_m:Thong`: the module `mine_m` has no `Thong`; did you mean `Thing`? (it has Component, Thing)"
    )


def test_two_folders_with_modules_of_one_name(distribution, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine_n.py").write_text(COMPONENT)
    Registry(trust=True).load("mine_n:Thing", tmp_path / "one")
    Registry(trust=True).load("mine_n:Thing", tmp_path / "one")
    assert "Python has `mine_n` from" in refusal(Registry(trust=True), "mine_n:Thing", tmp_path / "two")


def test_what_is_no_component():
    class Unrelated:
        pass

    message = refusal(Registry({"x": Unrelated}), "x")
    assert "Unrelated is no component: it must derive from rlalign's Component, Task" in message
    assert "is no component" in refusal(Registry({"x": len}), "x")


def test_config_must_be_a_pydantic_model_that_forbids_what_it_does_not_know():
    from pydantic import BaseModel

    class Bare(Component):
        Config = dict

    class Lax(Component):
        class Config(BaseModel):
            clip: float = 0.2

    assert "Bare.Config must be a pydantic model" in refusal(Registry({"x": Bare}), "x")
    assert "Lax.Config would take misspelt options without a word" in refusal(Registry({"x": Lax}), "x")


def test_kinds():
    from rlalign.interface.policy import Policy, Value

    class OwnPolicy(Policy):
        class Config(Options):
            pass

    class OwnValue(Value):
        pass

    kinds = [kind(cls) for cls in (OwnPolicy, OwnValue, OwnTask, Own)]
    assert kinds == [
        "policy",
        "value",
        "task",
        "component",
    ]


def test_a_package_that_is_half_installed_is_none(tmp_path, monkeypatch):
    about = tmp_path / "half-1.dist-info"
    about.mkdir()
    (about / "entry_points.txt").write_text("[rlalign]\nkl = half:Kl\n")
    before = installed()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed() == before
