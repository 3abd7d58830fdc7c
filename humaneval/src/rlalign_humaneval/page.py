"""The page: which texts it shows under which ids, and the one HTML file that holds them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from importlib import resources
from itertools import combinations
from typing import TypeVar

from rlalign_humaneval.files import Key, Sheet
from rlalign_humaneval.questions import LEVELS, Axis
from rlalign_humaneval.sources import Example, Source
from rlalign_study.onefile import allowed, as_json, filled

_T = TypeVar("_T")
SCRIPTS = ("answers.js", "screens.js", "keys.js")
"""In this order they are one script."""


def blinded(
    examples: Sequence[Example],
    sources: Sequence[Source],
    axes: Sequence[Axis],
    pairwise: str | None,
    *,
    task: str | None,
    seed: int,
) -> Key:
    """The texts of all runs under ids that say nothing, and what they stand for.

    What several runs answered in the very same words is one text. It is rated once, for each of them, and never
    compared with itself. The ids follow from the seed and everything in the key, and not from the page alone.
    """
    texts: dict[tuple[int, str], list[str]] = {}
    for number, example in enumerate(examples):
        for run, text in example.responses.items():
            texts.setdefault((number, text), []).append(run)
    two = [(a, b) for a, b in combinations(texts, 2) if a[0] == b[0]] if pairwise else []
    runs = [source.name for source in sources]
    everything = [
        seed,
        runs,
        [[e.id, _plain(e), dict(e.responses)] for e in examples],
        [axis.model_dump() for axis in axes],
        pairwise,
    ]
    rng = random.Random(_sha256(json.dumps(everything)))
    of_prompt = dict(enumerate(_ids("p", len(examples), rng)))
    of_text = dict(zip(texts, _ids("t", len(texts), rng), strict=True))
    of_pair = dict(zip(two, _ids("c", len(two), rng), strict=True))
    sheet = Sheet(
        axes=tuple(axes),
        pairwise=pairwise,
        prompts=_sorted({of_prompt[i]: example.prompt for i, example in enumerate(examples)}),
        texts=_sorted({name: (of_prompt[key[0]], key[1]) for key, name in of_text.items()}),
        pairs=_sorted({name: _pair(of_text[a], of_text[b]) for (a, b), name in of_pair.items()}),
    )
    return Key(
        format="rlalign-humaneval-key/1",
        page=sheet.hash,
        runs=tuple(runs),
        sources=tuple(source.path for source in sources),
        task=task,
        seed=seed,
        sheet=sheet,
        examples=_sorted({of_prompt[i]: example.id for i, example in enumerate(examples)}),
        wrote=_sorted({name: tuple(texts[key]) for key, name in of_text.items()}),
    )


def html(key: Key) -> str:
    """One file that loads nothing: its own style and script are the only ones that a browser will take."""
    style = _part("page.css")
    script = "\n".join(['"use strict";', "{", *map(_part, SCRIPTS), "}", ""])
    data = as_json({"page": key.page, "levels": LEVELS, **key.sheet.model_dump(mode="json")})
    policy = (
        f"default-src 'none'; script-src '{allowed(script)}'; style-src '{allowed(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return filled(_part("page.html"), {"POLICY": policy, "STYLE": style, "DATA": data, "SCRIPT": script})


def _part(name: str) -> str:
    return (resources.files("rlalign_humaneval") / "page" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _plain(example: Example) -> object:
    prompt = example.prompt
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def _ids(letter: str, count: int, rng: random.Random) -> list[str]:
    """So many ids of one length, by chance."""
    return [f"{letter}{1000 + number}" for number in rng.sample(range(10 * max(count, 100)), count)]


def _sorted(found: dict[str, _T]) -> dict[str, _T]:
    return dict(sorted(found.items()))


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)
