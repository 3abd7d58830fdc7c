"""How an input goes wrong: values, trees, texts and bytes, each changed in the ways that files do go wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Keys = tuple[str | int, ...]

LARGE = "9" * 5_000
VALUES: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        1e-300,
        1e300,
        10**12,
        2**63,
        -(10**30),
        float("nan"),
        float("inf"),
    ),
    *("", " ", ".", "..", "\0", "\x1b[2J", "é\u202e", "a" * 10_000, "true", "null", "1e12", "0x10", "12:30"),
    *(
        "/dev/zero",
        "/dev/stdin",
        "../outside",
        "/etc/hostname",
        "~",
        "no-such-component",
        "kl",
        "rloo",
        "bandit",
    ),
    *("trap:Trap", "trap:reward", "os:system", "this:that", "trap", "rlalign:Component", "a:b:c", ":", "x:"),
    *(
        "${seed}",
        "${policy}",
        "${nothing}",
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH_NAME}",
        "${",
        "${oc.decode:'['}",
    ),
    *("${oc.create:{}}", "$${seed}", "${train.lr}", "${.}", "${..}", "{name}", "%(name)s", "{0.__class__}"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": {"b": {}}},
        ["kl"],
        [{"kl": None}],
        [1, 2, 3],
        {"trap:Trap": {}},
    ),
    *(
        {"from": "x"},
        {"of": "start"},
        {"from": 1},
        {"with": []},
        {"path": "/dev/zero"},
        {"as": "a", "kl": {}},
    ),
)
"""What may stand where something else should."""


def paths(tree: Any, keys: Keys = ()) -> list[Keys]:
    """Every place in a tree."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [keys, *(path for key, part in parts for path in paths(part, (*keys, key)))]


def change_tree(tree: Any, rng: random.Random, donors: Sequence[Any] = ()) -> Any:
    """The tree with one place in it changed: another value, another place's value, a key gone, renamed or added."""
    tree = json.loads(json.dumps(tree))
    where = rng.choice(paths(tree)[1:] or [()])
    if not where:
        return rng.choice(VALUES)
    holder = tree
    for key in where[:-1]:
        holder = holder[key]
    key, kind = where[-1], rng.randrange(8)
    if kind <= 2:
        holder[key] = rng.choice(VALUES)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        other = rng.choice(donors) if donors else tree
        place = rng.choice(paths(other))
        for step in place:
            other = other[step]
        holder[key] = json.loads(json.dumps(other))
    elif kind == 5 and isinstance(holder, dict):
        name = str(rng.choice([*VALUES[-40:], key[:-1], key + "s", key.upper()]))
        holder[name] = holder.pop(key)
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice(["as", "weight", "from", "models", "phases", "train", "seed", "x"])] = rng.choice(
            VALUES
        )
    elif isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice([0, -holder[key], holder[key] * 10**9, holder[key] + 0.5, str(holder[key])])
    else:
        holder[key] = [holder[key]] * rng.choice([1, 2, 50])
    return tree


def nested(depth: int, kind: str) -> str:
    """Brackets within brackets."""
    first, last = {"list": ("[", "]"), "map": ("{a: ", "}"), "json": ('{"a":', "}")}[kind]
    return first * depth + "1" + last * depth


def laughs(levels: int, width: int) -> str:
    """YAML aliases, each of several of the one before."""
    lines = ["a0: &a0 [x, x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


def change_text(text: str, rng: random.Random) -> str:
    """The text with one thing in it changed, as an editor, a merge or an enemy would."""
    lines = text.splitlines() or [""]
    at = rng.randrange(len(lines))
    changes: Sequence[Callable[[], str]] = (
        lambda: "\n".join(lines[:at] + lines[at + 1 :]),
        lambda: "\n".join([*lines[:at], lines[at], *lines[at:]]),
        lambda: "\n".join(
            [
                *lines[:at],
                rng.choice([" ", "\t", "- ", "? ", "!!python/name:os.system ", "&a ", "*a "]) + lines[at],
                *lines[at + 1 :],
            ]
        ),
        lambda: text[: rng.randrange(len(text) + 1)],
        lambda: text.replace(rng.choice(text.split() or ["x"]), str(rng.choice(VALUES))[:200], 1),
        lambda: text + "\n" + laughs(rng.choice([3, 12]), 9),
        lambda: text + "\nextra: " + nested(rng.choice([10, 3_000]), rng.choice(["list", "map"])),
        lambda: text + f"\nseed: {LARGE}\n",
        lambda: text.replace(": ", ": &x ", 1) + "\nb: *x\n",
        lambda: text + "\n<<: {seed: 1, train: *nowhere}\n",
        lambda: "\n".join([*lines[:at], "<<<<<<< ours", lines[at], "=======", *lines[at + 1 :]]),
        lambda: text + "\n---\n" + text,
    )
    return rng.choice(changes)()


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes damaged: flipped, cut, doubled, emptied, replaced."""
    if not data:
        return rng.choice([b"\0", b"{}", b"[]", b"\xff\xfe"])
    at = rng.randrange(len(data))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.choice([1, 8, 100])) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.choice([1, 8, 100]) :]
    if kind == 4:
        return data + data[at:]
    if kind == 5:
        return rng.choice([b"", b"\n", b"{}", b"[]", b"null", b'"x"', b"1", b"\xff" * 100, b"\0" * 100])
    if kind == 6:
        return data.replace(b"1", rng.choice([b"-1", LARGE.encode(), b"1e999", b"null", b'"1"']), 1)
    if kind == 7:
        return nested(rng.choice([10, 50_000]), "json").encode()
    return data.replace(b'"', rng.choice([b"", b"'", b'\\u0000"']), 1)


def change_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON document, or a file of JSON lines, with one value changed; damaged where it is none."""
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    for before, document, after in (
        (b"", data, b""),
        (b"".join(lines[:at]), lines[at], b"".join(lines[at + 1 :])),
    ):
        try:
            return before + json.dumps(change_tree(json.loads(document), rng)).encode() + b"\n" + after
        except (ValueError, RecursionError):
            continue
    return change_bytes(data, rng)
