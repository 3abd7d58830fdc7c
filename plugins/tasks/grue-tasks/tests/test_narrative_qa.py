"""narrative-qa: UnifiedQA's form to the letter, all answers, and the fetched summaries without the books."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rlalign import ConfigError
from rlalign_plugin_grue_tasks.command import data
from rlalign_plugin_grue_tasks.narrative_qa import NarrativeQA
from rlalign_plugin_grue_tasks.summaries import fetch, in_a_folder, of_parquet

SALT = (
    "two sisters inherit a salt mine that has not been worked for years. mara wants to sell it, and june wants to live "
    "in it. they draw straws, and june wins. she opens the mine as a place where people with weak lungs come to "
    "breathe. mara, who laughed at the plan, is her first guest."
)


def made(**options: Any) -> NarrativeQA:
    return NarrativeQA(NarrativeQA.Config(**options))


def tsv(folder: Path, *lines: str, name: str = "train.tsv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


# -- prompts and references ---------------------------------------------------------------------------------


def test_prompts_and_references():
    task = made(sample=True, bad_rows="error")
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [8, 2, 2]
    mine = task.examples("train")[6]
    assert mine.prompt == "what do the sisters inherit? \\n " + SALT
    assert "\n" not in mine.prompt
    assert mine.references == ("a salt mine", "a mine of salt")
    assert mine.responses == (" a salt mine", " a mine of salt")
    assert mine.meta["question"] == "What do the sisters inherit?"
    assert task.examples("train")[7].references == ("they draw straws.", "by drawing straws")


def test_as_a_chat():
    mine = made(sample=True, style="chat").examples("train")[6]
    (message,) = mine.prompt
    assert message["role"] == "user"
    asked, _, summary = message["content"].partition("\n\nSummary: ")
    assert asked == (
        "Answer the question in a few words, from this summary of a story.\n\nQuestion: What do the sisters inherit?"
    )
    assert summary.startswith("Two sisters inherit a salt mine") and summary.lower() == SALT
    assert mine.references == ("A salt mine", "A mine of salt")


def test_answers_that_stand_apart_are_of_one_question(tmp_path):
    folder = tsv(
        tmp_path, "Q? \\n Text. \t One \n".rstrip("\n"), "R? \\n Text. \t R ", "Q? \\n Text. \t Two "
    )
    examples = made(path=folder).examples("train")
    assert [(e.id, e.references) for e in examples] == [
        ("train.tsv:1", ("one", "two")),
        ("train.tsv:2", ("r",)),
    ]
    assert len(made(path=folder, limit=1).examples("train")) == 1
    assert made(path=folder, limit=1).examples("train")[0].references == ("one", "two")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Q? \\n Text.", "1 cells with tabs between them, expected a prompt and an answer"),
        ("Q? Text.\tA", r"no ` \\n ` parts a question from a summary"),
        ("Q? \\n Text.\t ", "an answer is empty"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, said):
    with pytest.raises(ConfigError, match=said):
        made(path=tsv(tmp_path, line)).examples("train")


# -- compat: rl4lms -----------------------------------------------------------------------------------------


def test_as_rl4lms_reads_a_line(tmp_path):
    """A prompt keeps its white space; quotation marks at its beginning are read as CSV's."""
    folder = tsv(
        tmp_path, " Who  came? \\n A  text. \t  She \n".rstrip("\n"), '"Hm", Who? \\n A "text". \t B '
    )
    plain, quoted = made(path=folder).examples("train")
    assert (plain.prompt, plain.references) == ("who  came? \\n a text.", ("she",))
    assert quoted.prompt == '"hm", who? \\n a "text".'
    plain, quoted = made(path=folder, compat="rl4lms").examples("train")
    assert (plain.prompt, plain.references) == (" who  came? \\n a  text. ", ("she",))
    assert plain.responses == ("she",)
    assert quoted.prompt == 'hm, who? \\n a "text". '


def test_as_unifiedqa_made_its_files_from_rows(tmp_path):
    row = {"question": "Who came?", "summary": "One.\nTwo.", "answers": ["She"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert made(path=tmp_path).examples("train")[0].prompt == "who came? \\n one. two."
    assert made(path=tmp_path, compat="rl4lms").examples("train")[0].prompt == "who came? \\n one.two. "


# -- where the data are -------------------------------------------------------------------------------------


def test_the_hub_is_not_read():
    with pytest.raises(ConfigError) as caught:
        made().examples("train")
    said = str(caught.value)
    assert "repeat a whole book each" in said
    assert "`rlalign data fetch narrative-qa --summaries`" in said and "`path: data/narrative-qa`" in said
    assert "unifiedqa/data/narrativeqa" in said and "`sample: true`" in said


def test_sizes_are_of_questions(tmp_path):
    folder = tsv(tmp_path, "Q? \\n Text. \t A ", "Q? \\n Text. \t B ")
    with pytest.raises(
        ConfigError, match=r"`train` holds 1 rows, expected 32,747; `whole: false` takes it as it"
    ):
        made(path=folder, whole=True).examples("train")


# -- fetching -----------------------------------------------------------------------------------------------

BOOK = "".join(f"Chapter {n}. " + os.urandom(40).hex() for n in range(20_000))


def published(folder: Path, name: str, *questions: str) -> Path:
    """Rows as the hub has them, each with a whole book."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "document": {
                "id": "d1",
                "kind": "gutenberg",
                "summary": {"text": "A story.\nIt ends.", "tokens": ["A", "story"], "title": "T"},
                "text": BOOK + str(n),
            },
            "question": {"text": question, "tokens": [question]},
            "answers": [{"text": "One", "tokens": ["One"]}, {"text": "Two", "tokens": ["Two"]}],
        }
        for n, question in enumerate(questions)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        arrow.Table.from_pylist(rows), folder / name, compression="none", use_dictionary=False
    )
    return folder


def run(*options: Any) -> Result:
    return CliRunner().invoke(data, ["fetch", "narrative-qa", *map(str, options)])


def test_a_folder_of_published_files(tmp_path):
    theirs = published(tmp_path / "data", "train-00000-of-00002.parquet", "First?", "Second?")
    published(theirs, "train-00001-of-00002.parquet", "Third?")
    published(theirs, "validation-00000-of-00001.parquet", "Fourth?")
    published(theirs, "test-00000-of-00001.parquet", "Fifth?")
    to = tmp_path / "narrative-qa"
    done = run("--summaries", "--from", theirs, "--to", to)
    assert done.exit_code == 0, done.output
    assert f"{to}: train 3, validation 1, test 1\n" in done.output
    assert "hold train 32,747, validation 3,461, test 10,557: these are others" in done.output
    task = made(path=to)
    assert [len(task.examples(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    first = task.examples("train")[0]
    assert (first.prompt, first.references) == ("first? \\n a story. it ends.", ("one", "two"))
    assert sum(file.stat().st_size for file in to.iterdir()) < 20_000 < len(BOOK)
    again = run("--summaries", "--from", theirs, "--to", to)
    assert again.exit_code != 0 and "is there already" in again.output


def test_books_are_not_read(tmp_path):
    class Counted:
        """A file that counts the bytes it gives."""

        def __init__(self, path: Path) -> None:
            self.file, self.read_bytes, self.closed = path.open("rb"), 0, False

        def read(self, size: int = -1) -> bytes:
            found = self.file.read(size)
            self.read_bytes += len(found)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    theirs = published(tmp_path, "train-00000-of-00001.parquet", "First?", "Second?")
    whole = (theirs / "train-00000-of-00001.parquet").stat().st_size
    counted = Counted(theirs / "train-00000-of-00001.parquet")
    rows = of_parquet(counted, "train")
    assert rows[1] == {
        "document_id": "d1",
        "summary": "A story.\nIt ends.",
        "question": "Second?",
        "answers": ["One", "Two"],
    }
    assert whole > 2_000_000 and counted.read_bytes < 100_000


def test_the_same_files_as_path(tmp_path):
    task = made(path=published(tmp_path, "train-00000-of-00001.parquet", "First?", "Second?"))
    assert [e.prompt for e in task.examples("train")] == [
        "first? \\n a story. it ends.",
        "second? \\n a story. it ends.",
    ]
    assert task.examples("train")[1].references == ("one", "two")


def test_what_was_fetched_is_not_fetched_again(tmp_path):
    theirs = published(tmp_path / "data", "train-00000-of-00002.parquet", "First?")
    (theirs / "train-00001-of-00002.parquet").write_bytes(b"cut short")
    to, told = tmp_path / "out", list[str]()
    with pytest.raises(Exception, match="Parquet"):
        fetch(in_a_folder(theirs), str(theirs), to, told.append)
    assert not to.exists() and told == ["1 of 2: train-00000-of-00002.parquet, 1 questions"]
    (kept,) = (tmp_path / ".out.fetching").glob("*.parquet")
    before = kept.stat().st_mtime_ns
    published(theirs, "train-00001-of-00002.parquet", "Second?", "Third?")
    assert fetch(in_a_folder(theirs), str(theirs), to, told.append)["train"] == 3
    assert (to / kept.name).stat().st_mtime_ns == before and not (tmp_path / ".out.fetching").exists()


def test_another_source_begins_anew(tmp_path):
    theirs = published(tmp_path / "data", "train-00000-of-00001.parquet", "First?")
    work = tmp_path / ".out.fetching"
    work.mkdir()
    (work / "source.txt").write_text("elsewhere")
    (work / "train-00009-of-00009.parquet").write_bytes(b"theirs")
    assert fetch(in_a_folder(theirs), str(theirs), tmp_path / "out", print)["train"] == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "source.txt",
        "train-00000-of-00001.parquet",
    ]


def test_two_files_of_one_name_are_not_taken_for_one(tmp_path):
    for folder in ("a", "b"):
        published(tmp_path / folder, "train-00000-of-00001.parquet", "First?")
    with pytest.raises(
        ConfigError, match=r"holds several files `train-00000-of-00001\.parquet`; name the folder"
    ):
        in_a_folder(tmp_path)


def test_the_authors_tables(tmp_path):
    pytest.importorskip("pyarrow")
    theirs = tmp_path / "narrativeqa"
    (theirs / "third_party/wikipedia").mkdir(parents=True)
    with (theirs / "qaps.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["document_id", "set", "question", "answer1", "answer2", "question_tokenized"])
        table.writerow(["d1", "train", 'Who said "no"?', "She", "The girl", "x"])
        table.writerow(["d1", "valid", "When?", "Then", "At noon", "x"])
        table.writerow(["d1", "test", "Where?", "There", "At home", "x"])
    with (theirs / "third_party/wikipedia/summaries.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["document_id", "set", "summary", "summary_tokenized"])
        table.writerow(["d1", "train", "A story.\nIt ends.", "x"])
    to = tmp_path / "out"
    done = run("--summaries", "--from", theirs, "--to", to)
    assert done.exit_code == 0, done.output
    assert "train 1, validation 1, test 1" in done.output
    assert made(path=to).examples("train")[0].prompt == 'who said "no"? \\n a story. it ends.'
    assert made(path=to).examples("val")[0].references == ("then", "at noon")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say `--summaries`"),
        (("--summaries", "--from", "nowhere"), "nowhere: there is no such folder"),
        (("--summaries", "--from", "."), "holds neither Parquet files nor qaps.csv"),
    ],
)
def test_what_cannot_be_fetched(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    done = run(*options)
    assert done.exit_code != 0 and said in done.output


def test_the_hub_is_asked_for_pieces(tmp_path, monkeypatch):
    """Through a stand-in for its file system, whose files lie in a folder."""
    dirfs = pytest.importorskip("fsspec.implementations.dirfs")
    home = "datasets/deepmind/narrativeqa@2e643e7363944af1c33a652d1c87320d0871c4e4/data"
    published(tmp_path / home, "train-00000-of-00001.parquet", "First?")
    published(tmp_path / home, "test-00000-of-00001.parquet", "Second?")
    opened: list[str] = []

    class Files(dirfs.DirFileSystem):
        def __init__(self) -> None:
            super().__init__(str(tmp_path), fs=dirfs.filesystem("file"))

        def open(
            self, path: str, mode: str = "rb", *, cache_type: str
        ) -> Any:  # read ahead, and books come along
            opened.append(f"{path} {cache_type}")
            return super().open(path, mode)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfFileSystem=Files))
    done = run("--summaries", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert opened == [f"{home}/{split}-00000-of-00001.parquet none" for split in ("test", "train")]
    assert made(path=tmp_path / "out").examples("test")[0].prompt == "second? \\n a story. it ends."
    done = run("--summaries", "--to", tmp_path / "other", "--revision", "main")
    assert (
        done.exit_code != 0 and "there are no files datasets/deepmind/narrativeqa@main/data/" in done.output
    )


def test_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run("--summaries", "--to", tmp_path / "out")
    assert done.exit_code != 0 and not (tmp_path / "out").exists()
    assert "deepmind/narrativeqa: cannot be read: " in done.output
    assert "on a machine that has one and copy the folder" in done.output and "`--from`" in done.output
