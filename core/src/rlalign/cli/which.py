"""Which pipeline and which run a command line means."""

from __future__ import annotations

from pathlib import Path

import click

from rlalign.errors import ConfigError

LATEST = ""


def split(arguments: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        raise click.UsageError(f"one pipeline file at a time; got {', '.join(files)}")
    return (Path(files[0]) if files else None), [a for a in arguments if "=" in a]


def there(name: str | None, runs: Path) -> str | None:
    """The run that a start which is made again goes on with."""
    from rlalign.records import rundir

    if name is None:
        raise ConfigError(
            "a run that torchrun starts again is found by its name: say --name beside --max-restarts"
        )
    return str(runs / name) if rundir.is_run(runs / name) else None


def next_name(file: Path | None, runs: Path) -> str:
    """What a run is called that has no name: processes elsewhere must find it again."""
    from rlalign.records import rundir

    assert file is not None
    return rundir.next_name(runs, file.stem)


def is_file_or_override(text: str) -> bool:
    return "=" in text or text.endswith((".yaml", ".yml"))


def run_folder(resume: str, file: Path | None, runs: Path) -> Path:
    from rlalign.records import rundir

    if resume != LATEST:
        return Path(resume) if Path(resume).exists() or "/" in resume else runs / resume
    if file is None:
        raise ConfigError(
            "--resume: name the run, `--resume runs/NAME`, or the pipeline file whose latest run is meant"
        )
    if rundir.is_run(file):
        return file
    latest = rundir.latest(runs, file.stem)
    if latest is None:
        raise ConfigError(f"{runs}: holds no run of {file.name} to resume")
    return latest
