"""The commands `rlalign new`, `rlalign schema` and `rlalign migrate`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path

import click

KINDS = ("reward", "metric", "algorithm", "task", "environment", "policy")


@click.group()
def new() -> None:
    """Begin a plugin or a pipeline: files that work, to be changed."""


@new.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    required=True,
    help="What the component is. One package may hold several.",
)
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="A new folder.  [default: rlalign-plugin-NAME]"
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def plugin(name: str, kind: str, folder: Path | None, debug: bool) -> None:
    """Write a whole package with a component that works: its test, README, pipeline and checks.

    NAME is what pipelines will call it, such as `politeness`; `rlalign-plugin-` may stand before it.
    """
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign_authoring.plugin import named, write

        own = named(name, kind)
        target = folder or Path(own.distribution)
        for path in write(own, target):
            say(f"{target / path}")
        module = f"src/{own.distribution.replace('-', '_')}/__init__.py"
        say(
            f"\nThe {kind} is {own.cls} in {module}. Next:\n\n"
            f"    cd {target}\n"
            "    pip install -e '.[test]'\n"
            "    pytest\n"
            "    rlalign run pipeline.yaml"
        )

    guarded(debug, work)


@new.command()
@click.option("--task", metavar="ITEM", help="Where prompts come from.")
@click.option("--policy", metavar="ITEM", help="The model to train.")
@click.option(
    "--reward", "rewards", multiple=True, metavar="ITEM", help="What is wanted; as often as needed."
)
@click.option("--algorithm", metavar="ITEM", help="How it learns.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write it to this file.  [default: print it]"
)
@click.option(
    "--schema",
    metavar="FILE",
    help="Have editors check it against this schema; `rlalign schema -o FILE` writes one.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def pipeline(
    task: str | None,
    policy: str | None,
    rewards: tuple[str, ...],
    algorithm: str | None,
    out: Path | None,
    schema: str | None,
    debug: bool,
) -> None:
    """Write a pipeline of components that are installed, with all their options, commented.

    An ITEM is a name, or `name: {...}` with options. In a terminal what is not said is asked for.
    """
    from rlalign.cli.guarded import guarded, say
    from rlalign.errors import ConfigError

    def work() -> None:
        from rlalign.config.registry import Registry
        from rlalign_authoring import asking
        from rlalign_authoring import pipeline as made
        from rlalign_authoring.schema import first_line

        if out is not None and out.exists():
            raise ConfigError(f"{out}: exists; choose another file, or move it away")
        said = asking.items({"task": task, "policy": policy, "algorithm": algorithm}, rewards)
        registry, path = Registry(trust=True), out or Path("pipeline.yaml")
        folder = path.absolute().parent
        chosen = {
            role: [asking.complete(role, made.chosen(role, one, registry, folder)) for one in each]
            for role, each in said.items()
        }
        [its_task], [its_policy], [its_algorithm] = chosen["task"], chosen["policy"], chosen["algorithm"]
        first = first_line(schema) if schema else ""
        text = made.write(its_task, its_policy, chosen["rewards"], its_algorithm, first)
        made.check(text, path, registry)
        if out is None:
            click.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
            say(f"pipeline: {out}")

    guarded(debug, work)


@click.command()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write it to this file.  [default: print it]"
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def schema(out: Path | None, debug: bool) -> None:
    """The JSON Schema of pipelines, of the components that are installed: an editor completes and checks by it.

    Say `# yaml-language-server: $schema=FILE` on the first line of a pipeline, or have your editor's settings say it.
    """
    from rlalign.cli.guarded import guarded, say

    def work() -> None:
        from rlalign.config.registry import Registry
        from rlalign_authoring import schema as of

        found, broken = of.pipelines(Registry())
        for one in broken:
            say(f"note: left out: {one}", err=True)
        if out is None:
            click.echo(of.written(found), nl=False)
        else:
            out.write_text(of.written(found), encoding="utf-8")
            say(f"schema: {out}")

    guarded(debug, work)


@click.group()
def migrate() -> None:
    """Turn another library's configuration into a pipeline."""


@migrate.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write it to this file.  [default: print it]"
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def rl4lms(file: Path, out: Path | None, debug: bool) -> None:
    """A YAML file of RL4LMs as a pipeline; comments say what was converted, corrected or left out, and why.

    What RL4LMs does not know is refused, with its line.
    """
    from rlalign.cli.guarded import guarded, say
    from rlalign.errors import ConfigError

    def work() -> None:
        from rlalign.config.load import pipeline_text
        from rlalign_authoring.rl4lms.conversion import migrated

        if out is not None and out.exists():
            raise ConfigError(f"{out}: exists; choose another file, or move it away")
        text = migrated(pipeline_text(file), str(file))
        if out is None:
            click.echo(text, nl=False)
        else:
            out.write_text(text, encoding="utf-8")
            say(f"pipeline: {out}\nNext: rlalign check {out}")

    guarded(debug, work)
