"""CNN/DailyMail: an article behind an instruction, its highlights as they are."""

from __future__ import annotations

from pathlib import Path

from rlalign_plugin_grue_tasks.cnn_daily_mail import CNNDailyMail

ARTICLE = (
    "A baker in the old town has sold the same rye loaf for sixty years. On Friday she handed her oven to her "
    "grandson. He wants to keep the recipe and to add a loaf with walnuts. Customers stood in line around "
    "the corner to say goodbye."
)
HIGHLIGHTS = "Baker hands her oven to her grandson after sixty years .\nThe recipe of the rye loaf stays ."


def made(**options: object) -> CNNDailyMail:
    return CNNDailyMail(CNNDailyMail.Config(**({"sample": True} | options)))  # type: ignore[arg-type]


def test_prompt_and_reference():
    example = made(bad_rows="error").examples("train")[1]
    assert example.prompt == f"Summarize: {ARTICLE}"
    assert example.references == (HIGHLIGHTS,)
    assert example.responses == (f" {HIGHLIGHTS}",)


def test_chat():
    said = f"Summarize this article in three or four short sentences.\n\n{ARTICLE}"
    example = made(style="chat").examples("train")[1]
    assert list(example.prompt) == [{"role": "user", "content": said}]
    assert example.responses == (HIGHLIGHTS,)


def test_splits():
    task = made()
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [6, 3, 3]


def test_a_csv_file(tmp_path: Path):
    (tmp_path / "cnn_validation_subset.csv").write_text(
        'article,highlights,id\n"One, two.","One .\nTwo .",a1\n'
    )
    (example,) = made(sample=False, path=tmp_path).examples("val")
    assert example.prompt == "Summarize: One, two." and example.references == ("One .\nTwo .",)
