"""Writes the recipes, one file a task and algorithm, and the README's tables: `python -m recipes.grue.generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from recipes.grue import suite
from recipes.grue.recipe import METHODS, Recipe, name_of

from rlalign_authoring import layout

HERE = Path(__file__).parent
README, SUITE = HERE / "README.md", HERE / "suite.yaml"
SOME = {
    "either": "all but `supervised`",
    "base": "`ppo`, `nlpo`",
    "warm": "that begin fine-tuned",
    "supervised": "`supervised`",
}
"""The recipes that a note is about, in words."""


@cache
def table() -> Mapping[str, Any]:
    """What table.yaml says, by task."""
    found: Mapping[str, Any] = yaml.safe_load((HERE / "table.yaml").read_text(encoding="utf-8"))
    return found


def recipes() -> list[Recipe]:
    """All of them."""
    return [Recipe(task, row, method) for task, row in table().items() for method in METHODS]


def files() -> dict[Path, str]:
    """Every file and what it holds."""
    found = {HERE / one.task / f"{one.method}.yaml": one.text for one in recipes()}
    return {**found, SUITE: suite.text(table()), README: filled(README.read_text(encoding="utf-8"))}


def filled(readme: str) -> str:
    """The README with its tables."""
    for name, rows in (("tasks", _tasks()), ("corrections", _corrections())):
        before, mark, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        readme = "".join([before, mark, "\n", *(f"| {' | '.join(row)} |\n" for row in rows), end, after])
    return readme


def _tasks() -> Iterator[list[str]]:
    """What the recipes of each task say: from the first model, and from the one that was fine-tuned."""
    heads = [
        "task",
        "begins with; fine-tuned",
        "rewards",
        "responses: iteration, step",
        "`lr`",
        "iterations",
        "KL",
    ]
    yield from (heads, ["---"] * len(heads))
    for task, row in table().items():
        recipe, (base, warm) = Recipe(task, row, "ppo"), (row["base"], row["warm"])
        models = [f"`{one['model']}`" for one in (base, warm) if one["model"]]
        kl = [f"{one['kl']['coef']}, {one['kl']['target']}" for one in (base, warm)]
        cells = [
            "; ".join(models),
            " + ".join(f"{_weight(one)}`{name_of(one)}`" for one in recipe.rewards),
            f"{recipe.responses}, {recipe.step}",
            _either(layout.flow(base["lr"]), layout.flow(warm["lr"])),
            _either(str(base["iterations"]), str(warm["iterations"])),
            _either(*kl),
        ]
        yield [f"`{task}`", *cells]


def _either(base: str, warm: str) -> str:
    return base if base == warm else f"{base}; {warm}"


def _weight(reward: Any) -> str:
    return f"{reward['weight']} " if isinstance(reward, Mapping) and "weight" in reward else ""


def _corrections() -> Iterator[list[str]]:
    """All notes of the table."""
    yield from (["task", "recipes", "section", "note"], ["---"] * 4)
    for task, row in table().items():
        for part, notes in row.get("notes", {}).items():
            yield from ([f"`{task}`", SOME[part], f"`{section}`", note] for section, note in notes.items())


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
