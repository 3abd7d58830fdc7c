"""tldr: every layout, the prompt to the letter, what is no post."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlalign import ConfigError, Example
from rlalign_plugin_dialog_tasks import TLDR

POST = {"subreddit": "tea", "title": "A cup", "post": "It fell.\nTwice."}
PROMPT = "SUBREDDIT: r/tea\n\nTITLE: A cup\n\nPOST: It fell.\nTwice.\n\nTL;DR:"


def tldr(folder: Path, rows: list[Any], **options: Any) -> list[Example]:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(TLDR(TLDR.Config(path=path, **options)).examples("train"))


def test_posts_with_a_summary(tmp_path):
    (example,) = tldr(tmp_path, [{"id": "t3_a", **POST, "summary": "Broken cup. "}])
    assert (example.id, example.prompt, example.responses) == ("t3_a", PROMPT, (" Broken cup.",))
    assert (example.scores, example.meta) == ((), {"references": ["Broken cup."]})
    with pytest.warns(UserWarning, match="the id `t3_a` is that of train.jsonl:1 too"):
        assert len(tldr(tmp_path, [{"id": "t3_a", **POST, "summary": "s"}] * 2)) == 1


def test_prompts_with_a_completion(tmp_path):
    (example,) = tldr(tmp_path, [{"prompt": PROMPT, "completion": " Broken cup."}])
    assert (example.prompt, example.responses, example.id) == (PROMPT, (" Broken cup.",), "train.jsonl:1")


@pytest.mark.parametrize("chat", [False, True])
def test_pairs(tmp_path, chat):
    pair = {"chosen": "Broken cup.", "rejected": " Tea."}
    if chat:
        asked = {"role": "user", "content": PROMPT}
        pair = {k: [asked, {"role": "assistant", "content": v}] for k, v in pair.items()}  # type: ignore[misc]
    (example,) = tldr(tmp_path, [{"prompt": PROMPT, **pair}])
    assert (example.prompt, example.responses, example.scores) == (
        PROMPT,
        (" Broken cup.", " Tea."),
        (1.0, 0.0),
    )


def compared(**other: Any) -> dict[str, Any]:
    return {
        "info": {**POST, "id": "t3_a", "article": None},
        "summaries": [{"text": " Tea.", "policy": "ref"}, {"text": "Broken cup."}],
        "choice": 1,
        "worker": "w",
        **other,
    }


def test_comparisons(tmp_path):
    (example,) = tldr(tmp_path, [compared()])
    assert (example.prompt, example.responses, example.scores) == (
        PROMPT,
        (" Broken cup.", " Tea."),
        (1.0, 0.0),
    )
    assert tldr(tmp_path, [compared(choice=0)])[0].responses == (" Tea.", " Broken cup.")
    news = compared(info={"post": None, "article": "News.", "title": "t", "subreddit": None})
    with pytest.warns(UserWarning, match=r"1 of 2 examples kept; left out:\n  1 are news articles, no posts"):
        assert len(tldr(tmp_path, [compared(), news])) == 1


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (compared(choice=2), "`choice` is 2, expected 0 or 1"),
        (compared(choice=True), "`choice` is True"),
        (compared(choice=None), "`choice` is None"),
        (compared(summaries=[{"text": "a"}]), "1 summaries, expected two"),
        (compared(summaries=[{"text": "a"}, {"text": " "}]), "summary 2 is empty"),
        (compared(summaries=[{"text": "a"}, "b"]), "summary 2 is nothing"),
        (compared(info=None), "`info` is nothing"),
        (compared(info={**POST, "title": None}), "`info.title` is nothing"),
        ({**POST, "summary": ""}, "`summary` is empty"),
        ({"prompt": PROMPT, "completion": None}, "`completion` is nothing"),
        ({"prompt": PROMPT, "chosen": "a"}, "no column `rejected`"),
        ({"prompt": PROMPT, "chosen": "a", "rejected": []}, "`rejected` is a list"),
        ({"prompt": PROMPT}, "no column `completion`, `chosen`, `summary` or `summaries`"),
    ],
)
def test_bad_rows(tmp_path, row, why):
    with pytest.raises(ConfigError, match="1 of 2 rows cannot be used") as caught:
        tldr(tmp_path, [compared(), row], bad_rows="error")
    assert f"train.jsonl:2: {why}" in str(caught.value)
