"""The command `rlalign humaneval`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def humaneval() -> None:
    """Have people rate what runs wrote, blindly, and compute what they said."""


@humaneval.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_A RUN_B [...]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("humaneval.html"),
    show_default=True,
    help="The page; its key is written beside it, as NAME.key.json.",
)
@click.option("--items", type=click.IntRange(min=1), default=50, show_default=True, help="Prompts, at most.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses prompts and ids."
)
@click.option("--task", help="Ask what is asked of this task.  [default: the runs' own]")
@click.option(
    "--likert",
    "axes",
    multiple=True,
    metavar="'NAME: QUESTION'",
    help="Rate this from 1 to 5 in place of the task's axes; as often as needed. '| LOW | HIGH' behind it "
    "says what 1 and 5 mean.",
)
@click.option("--no-likert", is_flag=True, help="Only compare.")
@click.option("--pairwise", metavar="QUESTION", help="Ask this of two responses.")
@click.option("--no-pairwise", is_flag=True, help="Only rate.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def make(
    runs: tuple[str, ...],
    out: Path,
    items: int,
    seed: int,
    task: str | None,
    axes: tuple[str, ...],
    no_likert: bool,
    pairwise: str | None,
    no_pairwise: bool,
    debug: bool,
) -> None:
    """Write a page on which people rate and compare responses of two or more runs to the same prompts.

    A run is its folder, for the samples of its last evaluation, or a file of more: `rlalign sample RUN --new --n 50
    --json > FILE`, or logged data. The page needs no network; the key says which run wrote what, and stays with you.
    """
    from rlalign.cli.guarded import guarded, say
    from rlalign.errors import ConfigError

    def work() -> None:
        from rlalign.records.rundir import write_atomic
        from rlalign_humaneval import page, questions, sources

        if len(runs) < 2:
            raise ConfigError("name two runs or more")
        if (no_likert and axes) or (no_pairwise and pairwise) or (no_likert and no_pairwise):
            raise ConfigError(
                "--no-likert and --no-pairwise leave questions out: ask some, and none that are left out"
            )
        at = out.with_name(f"{out.stem}.key.json")
        for path in (out, at):
            if path.exists():
                raise ConfigError(
                    f"{path}: exists; raters may have it: move it away, or choose another --out"
                )
        found = sources.distinct([sources.read(run) for run in runs])
        named = task or next((one.task for one in found if one.task), None)
        asked = [] if no_likert else [questions.axis(one) for one in axes] or questions.axes_of(named)
        if len({one.name for one in asked}) < len(asked):
            raise ConfigError("--likert: two axes have one name")
        better = None if no_pairwise else pairwise or questions.comparison_of(named)
        examples = sources.paired(found, items, seed)
        key = page.blinded(examples, found, asked, better, task=named, seed=seed)
        write_atomic(at, key.model_dump_json(indent=1) + "\n")
        write_atomic(out, page.html(key))
        if len(examples) < items:
            say(
                f"note: of {items} prompts {len(examples)} were found that all of them have answered, each counted "
                f"once; for more, `rlalign sample RUN --new --n {2 * items} --json > FILE` with each; name the files",
                err=True,
            )
        ratings = f"{len(key.sheet.texts)} responses to rate ({', '.join(one.name for one in asked)})"
        pairs = f"{len(key.sheet.pairs)} comparisons"
        say(
            f"{out}: {len(examples)} prompts; {' and '.join([ratings] * bool(asked) + [pairs] * bool(better))}"
        )
        say(f"{at}: which run wrote what; keep it from raters")

    guarded(debug, work)


@humaneval.command()
@click.argument("key", type=click.Path(path_type=Path), metavar="PAGE.key.json")
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all digits.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def score(key: Path, answers: tuple[Path, ...], as_json: bool, debug: bool) -> None:
    """Compute what raters said: means, agreement, ANOVA and Tukey's HSD, win rates."""
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign_humaneval import files, report
        from rlalign_humaneval.scores import scores

        read = files.read(key, files.Key)
        found = scores(read, files.read_answers(list(answers), read))
        say(report.as_json(found) if as_json else report.markdown(found))

    guarded(debug, work)
