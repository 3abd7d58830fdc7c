"""What `rlalign eval`, `sample` and `export` do with a run or a model. torch is imported when it is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlalign.errors import STEERING, ConfigError
from rlalign.records import logs
from rlalign.records.result import is_evaluation
from rlalign.records.rundir import RunDir, checkpoint_of, is_run

if TYPE_CHECKING:
    from rlalign.api import Result
    from rlalign.running.opened import Opened


def opened(
    target: str | None,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    rewards: Sequence[str] = (),
    policy: str | None = None,
    **options: Any,
) -> Opened:
    """A run, by folder or by name, or else a model; options as the command line says them."""
    from rlalign import api
    from rlalign.config.places import value

    path = None if target is None else run_folder(target)
    return api.open(
        path if path and is_run(path) else target,
        overrides,
        task=None if task is None else value(task, "--task"),
        use=[value(one, "--reward") for one in rewards] or None,
        policy=None if policy is None else value(policy, "--policy"),
        **options,
    )


def require_task(target: str, task: str | None) -> None:
    """Refuse a model that no task is named for, before it is loaded."""
    if task is None and is_model(target):
        raise ConfigError(f"{target}: a model says nothing of what to measure it on: name a --task")


def is_model(target: str) -> bool:
    """Whether this is a model's folder."""
    folder = run_folder(target)
    return (folder / "config.json").is_file() and not is_run(folder)


def run_folder(name: str) -> Path:
    """`runs/toy`, for which `toy` will do."""
    path = Path(name)
    return path if path.exists() or "/" in name or not is_run(Path("runs") / name) else Path("runs") / name


def measured(run: Opened, *, json: bool, logged: bool = False) -> str:
    """What an evaluation says, and what its figures depend on where their components tell."""
    row, signatures = run.evaluate(logged=logged), run.signatures
    if json:
        return as_json({**row, **({"signatures": signatures} if signatures else {})})
    wide = max(map(len, signatures), default=0)
    signed = [f"{name:{wide}}  {said}" for name, said in signatures.items()]
    return "\n".join([_table(row), *(["", "signatures", *signed] if signed else [])])


def _table(row: Mapping[str, Any]) -> str:
    """The figures of an evaluation in two columns; all digits are in the JSON."""
    figures = {name: value for name, value in row.items() if name.startswith("eval/")}
    wide = max(map(len, figures))
    lines = [f"{name:{wide}}  {value:.6g}" for name, value in figures.items()]
    where = row.get("model") or f"{row['phase']}, iteration {row['iteration']}"
    return "\n".join([where, *lines])


def as_json(value: Any) -> str:
    """JSON that a terminal shows as it is."""
    text = json.dumps(logs.plain(value), ensure_ascii=False, allow_nan=False, default=str)
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def located(name: str, at: Any) -> tuple[Path, Any]:
    """The run, and the checkpoint in it, that a name or a path means."""
    return checkpoint_of(run_folder(name), at)


def logged_samples(run: Result, at: Any = None) -> list[dict[str, Any]]:
    """The samples that a run wrote down at its last evaluation, or `at` that of an iteration or of the best one."""
    rows = run.samples
    if not rows:
        raise ConfigError(
            f"{run.folder}: has logged no samples, as it was never evaluated; "
            f"`rlalign sample {run.folder} --new` takes some now"
        )
    where = [_place(row) for row in rows]
    asked = where[-1]
    if at is not None:
        if at == "best":
            from rlalign.running.checkpointing import index_at

            at = index_at(RunDir(run.folder), at)
        evaluated = {done: place for done, place in _evaluated(run).items() if place in where}
        if at not in evaluated:
            new = f"; `rlalign sample {run.folder} --at {at} --new` takes samples of its checkpoint"
            raise ConfigError(
                f"{run.folder}: was not evaluated at iteration {at}, but at {', '.join(map(str, sorted(evaluated)))}"
                + (new if (RunDir(run.folder).checkpoints / f"{at:08d}").is_dir() else "")
            )
        asked = evaluated[at]
    return [row for row, place in zip(rows, where, strict=True) if place == asked]


def _evaluated(run: Result) -> dict[int, tuple[str, int, int]]:
    """Where a run was evaluated, by the iterations before; the end of a phase, if the next one begins with one too."""
    found: dict[int, tuple[str, int, int]] = {}
    done = 0
    for row in run.rows:
        if is_evaluation(row):
            found.setdefault(done, _place(row))
        else:
            done += 1
    return found


def _place(row: Mapping[str, Any]) -> tuple[str, int, int]:
    """Where a run stood, as every line of its logs says."""
    return row["phase"], row["repeat"], row["iteration"]


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Prompts, responses and scores to be read."""
    head = rows[0].get("model") or f"{rows[0]['phase']}, iteration {rows[0]['iteration']}"
    return "\n".join([head, *(_sample(row) for row in rows)])


def _sample(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    parts = [("prompt", prompt)]
    for message in row.get("transcript", [{"role": "assistant", "content": row["response"]}]):
        own, text = message["role"] == "assistant", str(message["content"])
        parts.append(("response", text or "(empty)") if own else ("told", text))
    if row.get("scores"):
        scores = "  ".join(f"{name} {float(value):.4g}" for name, value in row["scores"].items())
        parts.append(("scores", scores))
    indent = "\n" + " " * 10
    return "\n".join(["", *(f"{name:8}  {text.replace(chr(10), indent)}" for name, text in parts)])


def require_writable(target: Path, run: Path, option: str) -> Path:
    """A target that can be written, before anything costly is done for it."""
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target}: exists; move it away, or choose another place with {option}")
    if target.resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"{target}: lies in the run's own folder; choose another place with {option}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"{target}: cannot be written: {why}; choose another place with {option}") from None
    return target
