"""Fills the tables in every README and page of the manual: `make docs`.

Below a line `<!-- options: kl, clip -->` stands a table of these components' options; below
`<!-- options: rlalign.data.settings:Train -->` one of this model's fields. Names and descriptions come from the
code; a test fails when a table is not what the code says. Below `<!-- architectures: causal -->` stands what the
slow test of the plugin `hf` found of these models, and below `<!-- limits: rlalign.data.limits -->` the limits
that a module says. Below `<!-- defaults: grpo, dapo -->` stand the options that these components share, and the
default of each. Below `<!-- measured: speed -->` stands what the newest file under `benchmarks/results` says
(`benchmarks/speed/report.py`), or one sentence where there is none. Below `<!-- leaderboard: FOLDER -->` stands the
overall table that `rlalign bench … table` wrote there.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import dropwhile, pairwise, takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "No figures are kept here yet."
"""What stands in the place of a table of measurements before there are any."""
MARKER = re.compile(
    r"(<!-- (options|defaults|architectures|limits|measured|leaderboard): (.+?) -->\n)\n?"
    rf"({re.escape(NOTHING)}\n|(?:\|.*\n)*)\n?"
)
ARCHITECTURES = ROOT / "plugins/policies/hf/tests/architectures.json"


def packages() -> list[Path]:
    """Every package of the repository, the example plugins last."""
    found = (p.parent for pattern in ("plugins/*/*", "examples/plugins/*") for p in _sorted(pattern))
    return [ROOT / "core", *found]


def _sorted(pattern: str) -> list[Path]:
    return sorted(ROOT.glob(f"{pattern}/pyproject.toml"))


def components() -> dict[str, str]:
    """`module:Class` of every component the packages declare, by name."""
    found: dict[str, str] = {}
    for package in packages():
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        found |= project.get("entry-points", {}).get("rlalign", {})
    return found


def pages() -> list[Path]:
    """Everything written for users."""
    return [
        *sorted(ROOT.glob("*.md")),
        *(page for page in sorted(ROOT.glob("docs/**/*.md")) if "site" not in page.parts),
        *(package / "README.md" for package in packages()),
        *sorted(ROOT.glob("recipes/*/README.md")),
        *(ROOT / "benchmarks" / name / "README.md" for name in ("gpu", "speed")),
    ]


def load(path: str) -> Any:
    """`module:Class`, or a module."""
    for package in packages():
        if (source := str(package / "src")) not in sys.path:
            sys.path.append(source)
    module, _, name = path.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    told = value if isinstance(value, str) and value and value.isprintable() else json.dumps(value)
    return f"`{told}`".replace("|", "\\|")


def options(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if field.description is None:  # not for a file to say
            continue
        yield f"`{field.alias or name}`", default(field), str(field.description).replace("|", "\\|")


def table(names: str) -> str:
    """The table below `<!-- options: names -->`."""
    listed = [name.strip() for name in names.split(",")]
    rows: list[tuple[str, ...]]
    if ":" in names:
        rows = [("key", "default", "meaning"), *options(load(names))]
    else:
        known = components()
        rows = [("component", "option", "default", "meaning")]
        for name in listed:
            own = list(options(load(known[name]).Config)) or [("none", "", "")]
            rows += [(f"`{name}`", *row) for row in own]
        if len(listed) == 1:
            rows = [row[1:] for row in rows]
    return as_table(rows)


def defaults(names: str) -> str:
    """Components of the same options side by side: a row for each option, a column for each component."""
    listed = [name.strip() for name in names.split(",")]
    told = [{row[0]: row[1] for row in options(load(components()[name]).Config)} for name in listed]
    rows = [(option, *(own[option] for own in told)) for option in told[0]]
    return as_table([("option", *(f"`{name}`" for name in listed)), *rows])


def as_table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row).replace("  ", " ") + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def architectures(kind: str) -> str:
    """What came of the architectures of a kind: those with one verdict together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, (verdict, why) in json.loads(ARCHITECTURES.read_text())[kind].items():
        groups.setdefault((verdict, why), []).append(f"`{name}`")
    order = ("exact", "refused", "not built")
    rows = [
        (f"{len(names)} {verdict}", why.replace("|", "\\|"), ", ".join(names))
        for (verdict, why), names in sorted(
            groups.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]), item[0][1])
        )
    ]
    return as_table([("how many", "why", "which"), *rows])


def limits(modules: str) -> str:
    """The numbers that modules set, with what each says of itself."""
    rows = [("limit", "number", "of what")]
    for name in modules.split(", "):
        module = load(name)
        body = ast.parse(Path(str(module.__file__)).read_text()).body
        for one, words in pairwise(body):
            match one, words:
                case ast.Assign(targets=[ast.Name(id=limit)]), ast.Expr(ast.Constant(str(said))):
                    number = getattr(module, limit)
                    if isinstance(number, int) and not limit.startswith("_"):
                        rows.append((f"`{limit}`", f"{number:,}", said.splitlines()[0]))
    return as_table(rows)


def measured(name: str) -> str:
    """The table below `<!-- measured: name -->`, or that there is nothing to show."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    rows = load("benchmarks.speed.report:measured")(name)
    return as_table(rows) if len(rows) > 1 else f"{NOTHING}\n"


def leaderboard(folder: str) -> str:
    """The first table of a leaderboard's `readme.md`: all tasks together."""
    lines = (ROOT / folder / "readme.md").read_text().splitlines()
    rows = takewhile(
        lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines)
    )
    return "\n".join(rows) + "\n"


def filled(text: str) -> str:
    """A page with its tables as the code has them."""
    made = {"options": table, "defaults": defaults, "architectures": architectures, "limits": limits}
    made |= {"measured": measured, "leaderboard": leaderboard}
    return MARKER.sub(lambda m: f"{m[1]}\n{made[m[2]](m[3])}\n", text)


def main() -> None:
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)
            print(f"filled {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
