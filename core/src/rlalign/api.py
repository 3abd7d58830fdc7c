"""rlalign from Python: load a pipeline, run it, resume it, open what came of it. The command line uses no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from rlalign.config import pipeline as config
from rlalign.config.from_python import Given, Overrides, overrides_as_text, plain
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign.errors import CheckpointError, ConfigError, refusing
from rlalign.records.environment import read_lock
from rlalign.records.files import StrPath
from rlalign.records.result import Result
from rlalign.records.rundir import checkpoint_of, is_run
from rlalign.running.callbacks import Callbacks, Watch, stoppable
from rlalign.running.display import Display, NoDisplay, closed_on_failure, make_display
from rlalign.world.joining import taking_part
from rlalign.world.ranks import here

if TYPE_CHECKING:
    from rlalign.running.loop import Session
    from rlalign.running.opened import Opened

__all__ = ["Callbacks", "Pipeline", "Result", "load", "open", "resume", "run"]

Components = Mapping[str, Given]
"""Classes, and functions that are rewards, by the names a pipeline gives them."""
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose names and options are sound, and where its components are found."""

    settings: config.Pipeline
    registry: Registry

    def check(self, machine: str | None = None) -> str:
        """What the pipeline means, as `rlalign check` prints it; a ConfigError for all that would keep it from running.

        Looks at data and models, but loads no weights, downloads nothing and reads no more than some of the examples.
        `machine`, such as `8xH100`: what it would take there; then what is amiss on this one is told, not raised.
        """
        from rlalign.running.checked import check

        with refusing():
            return check(self.settings, self.registry, machine)

    def smoke(self) -> str:
        """Run one small iteration of each phase on the processor and say what was done; a ConfigError for what fails.

        Models are shrunk, examples few, responses short; all is written into a temporary folder. Python code that the
        pipeline names is run.
        """
        from rlalign.running.smoke import smoke

        return smoke(self.settings, self.registry)

    def facts(self, machine: str | None = None) -> dict[str, Any]:
        """What `check` tells in words, as plain data: what `rlalign check --json` prints."""
        from rlalign.running.checked import checked

        with refusing():
            return dict(checked(self.settings, self.registry, machine).facts)


def load(
    source: StrPath | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    seed: int | None = None,
    components: Components = _NONE,
) -> Pipeline:
    """A pipeline from a file or a dict, after overrides. One ConfigError lists all that is wrong.

    In a dict, and in overrides, a class or a function may stand where a name does; `components` gives others names.
    """
    given = dict(components)
    path, data = ("pipeline", plain(source, given)) if isinstance(source, Mapping) else (Path(source), None)
    changes = overrides_as_text(overrides, given)
    if seed is not None:
        changes.append(f"seed={seed}")
    with refusing():
        registry = _registry(given, trust=True)
        read = load_pipeline(path, changes, registry=registry, text=data, said=_said(overrides))
        return Pipeline(read, registry)


def run(
    pipeline: Pipeline | StrPath | Mapping[str, Any],
    *,
    root: StrPath = "runs",
    name: str | None = None,
    callbacks: Callbacks | Sequence[Callbacks] = (),
    display: Display | bool = True,
) -> Result:
    """Run a pipeline in the folder `root`/`name`, without a name in a new one called after its file.

    `display` is False for silence. Ctrl-C ends the run after its iteration with a checkpoint and `Interrupted`;
    a second one at once.
    """
    from rlalign.running import loop

    with taking_part():
        with refusing():
            ready = pipeline if isinstance(pipeline, Pipeline) else load(pipeline)
            watch = _watch(display, callbacks)
            with closed_on_failure(watch):
                session = loop.start(
                    ready.settings, ready.registry, root=Path(root), name=name, display=watch
                )
        return _finish(session, watch)


def resume(
    folder: StrPath | Result,
    overrides: Overrides = (),
    *,
    extend: int | None = None,
    components: Components = _NONE,
    inexact: bool = False,
    previous: bool = False,
    callbacks: Callbacks | Sequence[Callbacks] = (),
    display: Display | bool = True,
) -> Result:
    """Go on with a run as if it had never stopped; one that is finished stays as it is.

    With overrides its pipeline is another one from its last checkpoint on; `extend` adds iterations to its last phase,
    also where it is finished. Where the run is then not what one begun so would be, a note says why.
    A run that was given classes needs them again, by the same names. `inexact` goes on although packages, data,
    classes or machine changed; `previous` from the checkpoint before the last.
    """
    from rlalign.running import loop

    given, path = dict(components), _path(folder)
    changes = overrides_as_text(overrides, given)
    with taking_part():
        with refusing():
            registry = _same_classes(path, given, trust=True, inexact=inexact)
            watch = _watch(display, callbacks)
            with closed_on_failure(watch):
                session = loop.resume(
                    path,
                    registry,
                    overrides=changes,
                    extend=extend,
                    inexact=inexact,
                    previous=previous,
                    display=watch,
                    said=_said(overrides),
                )
        return _finish(session, watch)


def open(
    target: StrPath | Result | None = None,
    overrides: Overrides = (),
    *,
    at: int | Literal["best"] | None = None,
    use: Sequence[Any] | None = None,
    task: Any = None,
    split: str | None = None,
    examples: int | None = None,
    seed: int | None = None,
    policy: Any = None,
    components: Components = _NONE,
    trust: bool = False,
) -> Opened:
    """A run at a checkpoint, or a model folder: `.evaluate()`, `.sample()`, `.score()`, `.export()`.

    A run is opened at its last checkpoint, or `at` an iteration or the "best"; a checkpoint's own folder will do too.
    A run evaluates as its phase does, unless told: `use` names rewards and metrics, `task`, `split` and `examples`
    what to evaluate on; overrides begin with `evaluate.`. A model needs a task to be evaluated. `policy` loads it,
    where its config.json does not tell. Without a target there is no model, and the responses that the task's
    examples carry are measured: `.evaluate(logged=True)`. Without `trust` nothing is imported but installed
    components and what is given here, and no variable of the environment is read for it.
    """
    from rlalign.running.opening import open_model, open_run, open_texts

    given = dict(components)
    path, at = (Path(), at) if target is None else checkpoint_of(_path(target), at)
    evaluate = {"use": use, "split": split, "examples": examples}
    evaluate = {key: value for key, value in evaluate.items() if value is not None}
    asked = plain({"evaluate": evaluate, **({} if task is None else {"task": task})}, given)
    entry, changes = plain(policy, given), overrides_as_text(overrides, given)
    with refusing():
        if target is None:
            if policy is not None or at is not None:
                raise ConfigError(
                    "`policy` and `at` go with a model or a run; without one given texts are measured"
                )
            opened = open_texts(asked, changes, registry=_registry(given, trust=trust), said=_said(overrides))
        elif is_run(path) or not (path.exists() or task is not None or policy is not None):
            if policy is not None:
                raise ConfigError("a policy goes with a model; a run says itself what its policy is")
            registry = _same_classes(path, given, trust=trust)
            opened = open_run(path, asked, changes, at=at, registry=registry, said=_said(overrides))
        else:
            if at is not None:
                raise ConfigError("a model has no iterations: only a run is opened `at` one")
            registry = _registry(given, trust=trust)
            opened = open_model(str(path), asked, changes, entry, registry=registry, said=_said(overrides))
    if seed is not None:
        from rlalign.randomness import Seeds

        # Only now: what models make again at each start follows from the run's.
        opened.seeds = Seeds(seed)
    return opened


# -- what they share -----------------------------------------------------------------------------------------


def _watch(display: Display | bool, callbacks: Callbacks | Sequence[Callbacks]) -> Watch:
    shown = (
        (make_display() if display and here().leads else NoDisplay())
        if isinstance(display, bool)
        else display
    )
    return Watch(shown, [callbacks] if isinstance(callbacks, Callbacks) else list(callbacks))


def _finish(session: Session, watch: Watch) -> Result:
    watch.session = session
    with stoppable(session):
        return Result(session.run().path)


def _path(target: StrPath | Result) -> Path:
    return target.folder if isinstance(target, Result) else Path(target)


def _said(overrides: Overrides) -> str:
    """What messages call an override."""
    return "override" if isinstance(overrides, Mapping) else "command line"


def _registry(given: Components, *, trust: bool) -> Registry:
    if not given:
        return Registry(trust=trust)
    from rlalign.builtin.function import as_component

    return Registry({name: as_component(name, one) for name, one in given.items()}, trust=trust)


def _same_classes(run: Path, components: Components, *, trust: bool, inexact: bool = False) -> Registry:
    """The components of a run, which needs the classes again that it was given."""
    lock = run / "lock.json"
    try:
        given = read_lock(lock)["given"] if lock.is_file() else {}
    except CheckpointError:
        if not inexact:
            raise
        given = {}
    if missing := [name for name in given if name not in components]:
        shown = ", ".join(f"`{name}` ({given[name]['class']})" for name in missing)
        again = ", ".join(f"{name!r}: …" for name in missing)
        raise ConfigError(
            f"{run}: this run was given components from Python, which its folder does not hold: {shown}. "
            f"Give them again: components={{{again}}}"
        )
    return _registry(components, trust=trust)
