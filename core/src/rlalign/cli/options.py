"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable

import click


def _overrides(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what is no override."""
    if others := [one for one in given if "=" not in one]:
        raise click.UsageError(
            f"one run or model at a time; got {', '.join([ctx.params.get('target') or ctx.params['name'], *others])}"
        )
    return given


_OF_EVALUATION = (
    click.argument("overrides", nargs=-1, metavar="[evaluate.KEY=VALUE]...", callback=_overrides),
    click.option("--task", help="Another task: a name, or `name: {…}` as in a pipeline."),
    click.option("--split", help="The task's split."),
    click.option("--seed", type=click.IntRange(min=0), help="Sample from another seed than the run's."),
    click.option(
        "--trust", is_flag=True, help="Let it run Python code of its own, and read your environment."
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks."),
)


def of_evaluation(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OF_EVALUATION):
        command = option(command)
    return command


def iteration(context: click.Context, option: click.Parameter, said: str | None) -> int | str | None:
    if said is None or said == "best":
        return said
    if not said.isdecimal():
        raise click.BadParameter(f"{said!r} is no iteration: expected a number, or best")
    return int(said)


at = click.option(
    "--at",
    callback=iteration,
    metavar="ITERATION|best",
    help="At this checkpoint of the run, not at its last one.",
)
reward = click.option(
    "--reward", "rewards", multiple=True, help="Measure by this instead; as often as needed."
)
examples = click.option(
    "--examples", type=click.IntRange(min=1), help="Examples, from the start of the split."
)
policy = click.option(
    "--policy", help="Of a model: the policy that loads it, where its config.json does not tell."
)
