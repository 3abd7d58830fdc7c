"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from rlalign.cli import checking, disk, doctor, options, plugins, serving, which
from rlalign.cli.guarded import guarded, say
from rlalign.cli.installed import InstalledCommands
from rlalign.errors import ConfigError
from rlalign.parents import end_with


@click.group(cls=InstalledCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlalign")
def program() -> None:
    """Align language models with reinforcement learning, one YAML file a pipeline."""


@program.command()
@click.argument("arguments", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the run; stands above the file's `seed`.")
@click.option("--name", help="Name of the run's folder; by default the file's name, numbered.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs live.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=which.LATEST,
    metavar="[RUN]",
    help="Go on with a run: this one, or FILE's latest.",
)
@click.option(
    "--extend",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --resume: N iterations more, finished or not.",
)
@click.option("--previous", is_flag=True, help="With --resume: from the last checkpoint but one.")
@click.option("--inexact", is_flag=True, help="With --resume: although packages, data or machine changed.")
@click.option("--or-resume", is_flag=True, help="With --name: go on with that run where it is there.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Share the run among N processes, a GPU each.",
)
@click.option("--on", metavar="CLUSTER", help="Where its processes are: ray, ray://ADDRESS, `ray: {…}`.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live display.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def run(
    arguments: tuple[str, ...],
    seed: int | None,
    name: str | None,
    runs: Path,
    resume: str | None,
    extend: int | None,
    previous: bool,
    inexact: bool,
    or_resume: bool,
    processes: int | None,
    on: str | None,
    plain: bool,
    debug: bool,
) -> None:
    """Run a pipeline, or go on with a run: as it began, longer (--extend), or otherwise (KEY=VALUE)."""
    if (
        resume is not None
        and resume != which.LATEST
        and not Path(resume).is_dir()
        and which.is_file_or_override(resume)
    ):
        arguments, resume = (resume, *arguments), which.LATEST  # `--resume pipeline.yaml`
    file, overrides = which.split(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, or `--processes`, started this process
        end_with(os.getppid(), signal.SIGTERM)

    def work() -> None:
        from rlalign.running.display import NoDisplay, closed_on_failure, make_display
        from rlalign.world.joining import taking_part

        if resume is None and (previous or inexact or extend is not None):
            raise ConfigError("--extend, --previous and --inexact go with --resume")
        if resume is None and file is None:
            raise ConfigError("name a pipeline file: `rlalign run pipeline.yaml`")
        if resume is not None and (seed is not None or name is not None):
            raise ConfigError("a resumed run keeps its seed and its name: leave out --seed and --name")
        if or_resume and name is None:
            raise ConfigError("--or-resume goes with --name, which says which run it is")
        if on or (processes or 1) > 1:
            from rlalign.cli.processes import launch, launch_on, of_each

            if (there := os.environ.get("WORLD_SIZE") or "1") != "1":
                raise ConfigError(
                    f"WORLD_SIZE={there}: this process is one of several already; leave out --processes and --on where "
                    "torchrun starts it, or unset WORLD_SIZE where something left it behind"
                )
            started = of_each(sys.argv[1:])
            if not on:
                return launch(processes or 1, started)
            if extend is not None:
                raise ConfigError("--extend: started again it would extend again; say `train.iterations=…`")
            named = [] if name or resume is not None else ["--name", which.next_name(file, runs)]
            later = ["--or-resume"] if resume is None else []
            return launch_on(on, processes or 1, [*started, *named], later)
        with taking_part() as world:
            folder: Path | None = None if resume is None else which.run_folder(resume, file, runs)
            again = or_resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            changes = overrides
            # Of several machines torchrun counts it on that alone whose process was lost.
            if any(world.gather(lambda: again, "whether it is started again")) and folder is None:
                found = world.lead(lambda: which.there(name, runs), "whether the run is there")
                folder, changes = None if found is None else Path(found), []
            display = make_display(plain or None) if world.leads else NoDisplay()
            with closed_on_failure(display):
                display.stage(f"importing what {(folder or file or Path()).name} names")
                from rlalign import api

                if folder is not None:
                    api.resume(
                        folder, changes, extend=extend, inexact=inexact, previous=previous, display=display
                    )
                elif file is not None:
                    api.run(api.load(file, overrides, seed=seed), root=runs, name=name, display=display)

    guarded(debug, work, stopped="stopped before the run began")


@program.command("eval")
@click.argument("target", metavar="[RUN|MODEL]", required=False)
@options.of_evaluation
@options.at
@options.reward
@options.examples
@options.policy
@click.option(
    "--logged",
    is_flag=True,
    help="Measure the responses that the task's examples carry; without RUN or MODEL all of `train`, and no model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all digits.")
def evaluate(
    target: str | None,
    overrides: tuple[str, ...],
    seed: int | None,
    policy: str | None,
    logged: bool,
    as_json: bool,
    debug: bool,
    **more: Any,
) -> None:
    """Measure a run's checkpoint, or a model, without changing it; with `--logged` texts that are there."""
    if logged and target is not None and target.startswith("evaluate."):
        overrides = (target, *overrides)
        target = None
    if target is None and not (logged and more["task"] and more["rewards"]):
        raise click.UsageError(
            "name a run or a model; or --logged, with a --task that has responses and a --reward"
        )

    def work() -> None:
        from rlalign.cli import inspection

        if target is not None:
            inspection.require_task(target, more["task"])
        run = inspection.opened(target, overrides, seed=seed, policy=policy, **more)
        say(inspection.measured(run, json=as_json, logged=logged))

    guarded(debug, work)


@program.command()
@click.argument("name", metavar="RUN|MODEL")
@options.of_evaluation
@options.at
@click.option(
    "--new", is_flag=True, help="Sample now, from the last checkpoint, to the split's first prompts."
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Answer this now, put to the model as the task puts its own prompts; as often as needed.",
)
@click.option("--system", help="With --prompt: the system message of the chat, in place of the task's.")
@options.policy
@click.option(
    "--n",
    "count",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="How many; with --new, prompts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sample(
    name: str,
    overrides: tuple[str, ...],
    seed: int | None,
    new: bool,
    prompts: tuple[str, ...],
    system: str | None,
    count: int,
    as_json: bool,
    at: Any,
    trust: bool,
    debug: bool,
    **more: Any,
) -> None:
    """Show responses that a run logged at its last evaluation, or `--new` ones; or a model's answers to prompts."""

    def work() -> None:
        from rlalign.api import Result
        from rlalign.cli import inspection

        if system is not None and not prompts:
            raise ConfigError("--system goes with --prompt")
        if not prompts and more["task"] is None and (more["policy"] or inspection.is_model(name)):
            raise ConfigError(
                f"{name}: a model has logged nothing: give it a --prompt, or a --task to answer"
            )
        if new or prompts or more["policy"] or inspection.is_model(name):
            run = inspection.opened(name, overrides, seed=seed, examples=count, at=at, trust=trust, **more)
            rows = run.sample(prompts or None, system=system)
        elif overrides or seed is not None or any(more.values()):
            raise ConfigError("what was logged stays as it is; add --new to sample now")
        else:
            folder, there = inspection.located(name, at)
            rows = inspection.logged_samples(Result(folder), there)[:count]
        say(inspection.as_json(rows) if as_json else inspection.listed(rows))

    guarded(debug, work)


@program.command()
@click.argument("name", metavar="RUN")
@options.of_evaluation
@options.at
@options.reward
@options.examples
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="The model folder.  [default: NAME-model]"
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="Write the responses it kept to this .jsonl instead; with --to, both.",
)
@click.option(
    "--float32", is_flag=True, help="The weights as they were trained, not in the precision they came in."
)
@click.option(
    "--new", is_flag=True, help="With --samples: sample now, from the last checkpoint, as `eval` does."
)
def export(
    name: str,
    overrides: tuple[str, ...],
    seed: int | None,
    folder: Path | None,
    samples: Path | None,
    float32: bool,
    new: bool,
    at: Any,
    trust: bool,
    debug: bool,
    **more: Any,
) -> None:
    """Write a run's model, as of its last checkpoint, or its scored responses as logged data."""

    def work() -> None:
        from rlalign.api import Result
        from rlalign.cli import inspection

        run, there = inspection.located(name, at)
        if new and samples is None:
            raise ConfigError("--new goes with --samples FILE")
        if there is not None and samples and not new and folder is None:
            raise ConfigError("kept responses are of the whole run; --at goes with a model, or with --new")
        if not new and (overrides or seed is not None or any(more.values())):
            raise ConfigError("what was kept stays as it is; add --new and --samples FILE to sample now")
        model = folder or (None if samples else Path(f"{run.name}-model"))
        for target, option in ((model, "--to"), (samples, "--samples")):
            if target is not None:
                inspection.require_writable(target, run, option)
        if float32 and not model:
            raise ConfigError("--float32 goes with a model; add --to FOLDER")
        opened = None
        if new or model:
            opened = inspection.opened(str(run), overrides, seed=seed, at=there, trust=trust, **more)
        if opened and model:
            say(f"model: {opened.export(model, float32=float32)}")
        if samples and opened and new:
            say(f"samples: {opened.export_responses(samples)}")
        elif samples:
            say(f"samples: {Result(run).export_responses(samples)}")

    guarded(debug, work)


program.add_command(checking.check)
program.add_command(plugins.plugins)
program.add_command(disk.runs)
program.add_command(disk.clean)
program.add_command(serving.serve_reward)
program.add_command(doctor.doctor)


def main() -> None:
    """The `rlalign` command."""
    # Before torch is imported: threads that spin while they wait cost a shared machine tenfold and more.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    program(prog_name="rlalign")


if __name__ == "__main__":
    main()
