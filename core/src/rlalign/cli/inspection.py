"""What `rlalign eval`, `sample` and `export` do with a run or a model. torch is imported when it is needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlalign.errors import ConfigError
from rlalign.records import logs
from rlalign.records.rundir import RunDir, is_run, write_atomic

if TYPE_CHECKING:
    from rlalign.running.opened import Opened


def asked_for(
    task: str | None, split: str | None, rewards: Sequence[str] = (), examples: int | None = None
) -> dict[str, Any]:
    """The options of a command as a pipeline says them."""
    from rlalign.config import places

    evaluate: dict[str, Any] = {}
    if split is not None:
        evaluate["split"] = split
    if examples is not None:
        evaluate["examples"] = examples
    if rewards:
        evaluate["use"] = [places.value(one, "--reward") for one in rewards]
    return {"evaluate": evaluate, **({"task": places.value(task, "--task")} if task is not None else {})}


def opened(target: str, asked: Mapping[str, Any], overrides: Sequence[str], policy: str | None) -> Opened:
    """A run, by folder or by name, or else a model."""
    from rlalign.config import places
    from rlalign.running.opened import open_model, open_run

    path = run_folder(target)
    if is_run(path) or not (Path(target).exists() or "task" in asked):
        if policy is not None:
            raise ConfigError("--policy goes with a model; a run says itself what its policy is")
        return open_run(path, asked, overrides)
    return open_model(target, asked, overrides, None if policy is None else places.value(policy, "--policy"))


def run_folder(name: str) -> Path:
    """`runs/toy`, for which `toy` will do."""
    path = Path(name)
    return path if path.exists() or "/" in name or not is_run(Path("runs") / name) else Path("runs") / name


def table(row: Mapping[str, Any]) -> str:
    """The figures of an evaluation in two columns; all digits are in the JSON."""
    figures = {name: value for name, value in row.items() if name.startswith("eval/")}
    wide = max(map(len, figures))
    lines = [f"{name:{wide}}  {value:.6g}" for name, value in figures.items()]
    where = row.get("model") or f"{row['phase']}, iteration {row['iteration']}"
    return "\n".join([where, *lines])


def as_json(value: Any) -> str:
    return json.dumps(logs.plain(value), ensure_ascii=False, allow_nan=False, default=str)


def last_samples(path: Path) -> list[dict[str, Any]]:
    """The samples that a run wrote down at its last evaluation."""
    run = RunDir.open(path, exclusive=False)
    rows = list(logs.read(run.samples)) if run.samples.exists() else []
    if not rows:
        raise ConfigError(
            f"{path}: has logged no samples, as it was never evaluated; `rlalign sample {path} --new` takes some now"
        )
    where = [(row["phase"], row["repeat"], row["iteration"]) for row in rows]
    return [row for row, at in zip(rows, where, strict=True) if at == where[-1]]


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Prompts, responses and scores to be read."""
    head = f"{rows[0]['phase']}, iteration {rows[0]['iteration']}"
    return "\n".join([head, *(_sample(row) for row in rows)])


def _sample(row: Mapping[str, Any]) -> str:
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    parts = {"prompt": prompt, "response": row["response"]}
    if row.get("scores"):
        parts["scores"] = "  ".join(f"{name} {float(value):.4g}" for name, value in row["scores"].items())
    indent = "\n" + " " * 10
    return "\n".join(["", *(f"{name:8}  {text.replace(chr(10), indent)}" for name, text in parts.items())])


def free(target: Path, run: Path, option: str) -> Path:
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


def kept(path: Path) -> Iterator[dict[str, Any]]:
    """The responses a run kept, up to its last checkpoint, as logged data that says where it comes from."""
    from rlalign.records import checkpoint

    run = RunDir.open(path, exclusive=False)
    points = checkpoint.find(run.checkpoints)
    if points:
        sizes = checkpoint.log_sizes(run.checkpoints, points[-1])
    elif run.model.is_dir():  # finished, and its checkpoints deleted
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in run.rows.glob("*.jsonl")}
    else:
        raise ConfigError(
            f"{path}: nothing is saved yet: wait for its first iteration, or go on with it: "
            f"`rlalign run --resume {path}`"
        )
    sizes = {name: size for name, size in sizes.items() if name.startswith("rows/")}
    if not sizes:
        raise ConfigError(
            f"{path}: has kept no responses; say `train: {{keep_responses: true}}` in its pipeline and run it again, "
            "or add --new to sample now, from its last checkpoint"
        )
    for name, size in sizes.items():
        if not (path / name).is_file() or (path / name).stat().st_size < size:
            raise ConfigError(f"{path / name}: was deleted or cut; put it back")
    return _rows(run, sizes)


def _rows(run: RunDir, sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Those of the first pass first. Rows of different phases and passes get different ids."""
    from rlalign.records.rows import OURS

    lock = run.lock.read_bytes()
    said = json.loads(lock)
    origin = {
        "run": run.name,
        "lock": hashlib.sha256(lock).hexdigest(),
        "model": said["models"]["policy"],
        "seed": said["seed"],
        "version": said["plugins"]["rlalign"]["version"],
        "split": "train",
    }
    for name in sorted(sizes, key=lambda name: (int(Path(name).stem.rpartition("-")[2]), name)):
        with (run.path / name).open("rb") as file:
            while file.tell() < sizes[name]:
                row = json.loads(file.readline())
                row["meta"][OURS] |= origin
                yield {**row, "id": f"{Path(name).stem}/{row['id']}"}


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write logged data, whole or not at all; says what was written."""
    from rlalign.records.rows import OURS

    same: list[bool] = []

    def lines() -> Iterator[str]:
        for row in rows:
            same.extend(row["meta"][OURS]["same_tokens"])
            # What UTF-8 cannot hold, half of a pair of surrogates, as JSON's own escape.
            yield (as_json(row) + "\n").encode("utf-8", "backslashreplace").decode()

    write_atomic(file, lines())
    others = same.count(False)
    note = f"; {others} of them are other tokens when they are read back (`same_tokens`)" if others else ""
    return f"{file}, {len(same)} responses{note}"
