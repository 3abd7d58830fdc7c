"""Builds the documentation's site: `make docs`, then open site/html/index.html.

Its pages are the Markdown files of the repository, each where it lies: they are laid into `site/source`, and Sphinx
reads them there. Beside them come a page for each component (`components.py`), and one for each folder that
a page links to, or to a file of it: so that a link leads to the same on GitHub and here (`links.py`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Container, Iterable
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import components  # noqa: E402

PAGES = (
    *("*.md", "*/README.md", "docs/*.md", "docs/tutorials/**/*.md", "docs/guides/**/*.md"),
    *("plugins/*/*/README.md", "recipes/*/README.md", "examples/**/README.md"),
    *("benchmarks/**/README.md", "benchmarks/**/table.md", "benchmarks/**/leaderboard.md"),
)
LANGUAGES = {".yaml": "yaml", ".py": "python", ".json": "json", ".toml": "toml"}
LARGEST = 60_000
"""Bytes of a file that is shown on a page."""
UNSEARCHED = "---\nnosearch: true\n---\n"
NOT_SHOWN = re.compile(r"\.|__pycache__$|runs$|prepared$|.*\.egg-info$")


def lay(source: Path) -> None:
    """Everything that Sphinx reads, into `source`. What has not changed keeps its time, and is not read again."""
    pages = {named(path): path.read_text() for pattern in PAGES for path in ROOT.glob(pattern)}
    made = {name: text + plots(name, text) for name, text in pages.items()}
    made |= {named(path, HERE): path.read_text() for path in HERE.rglob("*.md")}
    made["index.md"] = without_empty(made["index.md"], made)
    made["README.md"] = UNSEARCHED + made["README.md"]  # which two other pages hold
    made |= components.pages()
    links = {link for page, text in made.items() for link in linked(page, text)}
    paths = [ROOT / link for link in links if link not in made and f"{link}/README.md" not in made]
    folders = {path if path.is_dir() else path.parent for path in paths if path.is_dir() or is_shown(path)}
    taken = {*made, *map(named, folders)}
    made |= {f"{named(folder)}.md": of_folder(folder, paths, taken) for folder in folders}
    whole = {named(path): path.read_bytes() for path in paths if path.is_file() and not is_shown(path)}
    put(source, {name: text.encode() for name, text in made.items()} | whole)


def named(path: Path, above: Path = ROOT) -> str:
    return path.relative_to(above).as_posix()


def linked(page: str, text: str) -> set[str]:
    """Files and folders of the repository that a page links to or shows."""
    found = set()
    for block in MarkdownIt().enable("table").parse(text):
        for token in block.children or ():
            target = str(token.attrs.get("href") or token.attrs.get("src") or "").partition("#")[0]
            if target and not re.match(r"\w+:", target):
                path = Path(os.path.normpath(ROOT / page / ".." / unquote(target)))
                if path.exists() and path != ROOT:
                    found.add(named(path))
    return found


def is_shown(path: Path) -> bool:
    """Whether a file is one to read on its folder's page; any other is handed out as it is."""
    return (
        path.suffix in LANGUAGES and path.parent != ROOT and path.is_file() and path.stat().st_size < LARGEST
    )


def of_folder(folder: Path, paths: list[Path], pages: Container[str]) -> str:
    """A page for a folder: what is in it, and those of its files that a page links to. Search leaves it out."""
    rows, files = [], ""
    for path in sorted(folder.iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if path in paths and is_shown(path):
            rows.append(f"- [{name}](/{named(path)})")
            text = path.read_text()
            fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
            files += f"\n## `{name}`\n\n{fence}{LANGUAGES[path.suffix]}\n{text.rstrip()}\n{fence}\n"
        elif named(path) in pages or f"{named(path)}/README.md" in pages:
            rows.append(f"- [{name}](/{named(path)})")
        elif not NOT_SHOWN.match(path.name):
            rows.append(f"- {name}")
    lines = "\n".join(rows)
    return f"{UNSEARCHED}# `{named(folder)}/`\n\n{lines}\n{files}"


def without_empty(tree: str, pages: Iterable[str]) -> str:
    """The landing page without the patterns, such as `docs/guides/*`, that no page has."""
    patterns = [line for line in tree.splitlines() if "*" in line and " " not in line]
    empty = [one for one in patterns if not any(fnmatch(page, f"{one}.md") for page in pages)]
    return "\n".join(line for line in tree.splitlines() if line not in empty) + "\n"


def plots(name: str, text: str) -> str:
    """The plots of a benchmark's results that its page does not show."""
    folder = (ROOT / name).parent
    found = [
        named(path, folder) for path in sorted(folder.glob("results/**/*.svg")) if name.endswith("README.md")
    ]
    rest = [f"![{Path(one).stem}]({one})\n" for one in found if f"]({one})" not in text]
    return "\n## More plots\n\n" + "\n".join(rest) if rest else ""


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold these files and no others."""
    for old in [path for path in folder.rglob("*") if path.is_file()]:
        if named(old, folder) not in files:
            old.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def main() -> int:
    from sphinx.cmd.build import build_main

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--to", type=Path, default=ROOT / "site", help="the folder (default: site)")
    parser.add_argument("--fresh", action="store_true", help="read every page again")
    asked = parser.parse_args()
    if asked.fresh:
        shutil.rmtree(asked.to, ignore_errors=True)
    source, html = asked.to / "source", asked.to / "html"
    source.mkdir(parents=True, exist_ok=True)
    before = set(source.rglob("*.md"))
    lay(source)
    if before != set(source.rglob("*.md")):  # every page's sidebar names the others
        shutil.rmtree(html, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(asked.to / "read")]
    if failed := build_main([*options, str(source), str(html)]):
        return failed
    print(f"{html / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
