"""Data at an address: read by ranges, refused in one sentence, and the same as on this machine."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rlalign import ConfigError
from rlalign.config.load import load_pipeline
from rlalign.config.registry import Registry
from rlalign_plugin_dataset import Dataset, remote

fsspec = pytest.importorskip("fsspec")
MemoryFileSystem = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

LINES = "".join(
    json.dumps({"id": str(i), "prompt": f"p{i}", "references": [f"r{i}"]}) + "\n" for i in range(300)
)


class Slow(MemoryFileSystem):
    """A store that counts what is asked of it, and fails when it is told to."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    ranges: ClassVar[list[int]] = []
    fails: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("slow://", "memory://")))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **more: Any) -> bytes:
        if self.fails:
            raise self.fails.pop()
        self.ranges.append(end - start)
        found: bytes = super().cat_file(path, start, end, **more)
        return found


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch):
    fsspec.register_implementation("slow", Slow, clobber=True)
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    yield
    for kind in (Slow, MemoryFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Slow.ranges.clear()
    Slow.fails.clear()


def put(address: str, data: bytes | str) -> None:
    with fsspec.open(address, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def task(path: str | Path, **options: Any) -> Dataset:
    said = json.dumps({"path": str(path), **options})
    return Dataset(Dataset.Config.model_validate_json(said, strict=True))


def told(found: Any) -> list[Any]:
    return [(e.id, e.prompt, e.references) for e in found]


def packed_as(kind: str, folder: Path) -> tuple[str, bytes]:
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.Table.from_pylist([json.loads(line) for line in LINES.splitlines()])
        parquet.write_table(table, folder / "x", row_group_size=50)
        return "train.parquet", (folder / "x").read_bytes()
    if kind == "json":
        return "train.json", json.dumps([json.loads(line) for line in LINES.splitlines()]).encode()
    if kind == "csv":
        rows = (json.loads(line) for line in LINES.splitlines())
        return "train.csv", "\n".join(
            ["id,prompt,references", *(f"{r['id']},{r['prompt']},{r['references'][0]}" for r in rows)]
        ).encode()
    return (
        ("train.jsonl.gz", gzip.compress(LINES.encode())) if kind == "gz" else ("train.jsonl", LINES.encode())
    )


@pytest.mark.parametrize("kind", ["jsonl", "gz", "json", "csv", "parquet"])
def test_the_same_as_on_this_machine(tmp_path, kind):
    name, data = packed_as(kind, tmp_path)
    (tmp_path / name).write_bytes(data)
    put(f"memory://bucket/{name}", data)
    here = task(tmp_path / name)
    for address in (f"memory://bucket/{name}", f"file://{tmp_path}/{name}"):
        there = task(address)
        assert told(there.examples("train")) == told(here.examples("train"))
        assert there.fingerprint("train") == here.fingerprint("train"), "a copy is the same data"
        again = task(address)
        assert told([again.examples("train")[i] for i in (299, 0, 7)]) == told(
            [here.examples("train")[i] for i in (299, 0, 7)]
        )
    assert not task(f"memory://bucket/{name}").here and task(f"file://{tmp_path}/{name}").here


def test_rows_are_read_by_their_ranges():
    put("slow://bucket/train.jsonl", LINES)
    task("slow://bucket/train.jsonl").examples("train")  # makes the index
    Slow.ranges.clear()
    found = task("slow://bucket/train.jsonl").examples("train")
    assert [found[i].prompt for i in (5, 250, 6)] == ["p5", "p250", "p6"]
    assert len(Slow.ranges) == 3 and max(Slow.ranges) < 100


def test_what_is_drawn_next_is_fetched_together(monkeypatch):
    """What lies close by in one piece; what fails then is read alone."""
    monkeypatch.setattr(remote, "GAP", 100)
    put("slow://bucket/train.jsonl", LINES)
    found = task("slow://bucket/train.jsonl").examples("train")
    places = [5, 250, 6, 5]
    Slow.ranges.clear()
    found.ahead(places)
    assert len(Slow.ranges) == 2, "the store was asked for all of them"
    assert [found[i].prompt for i in places] == ["p5", "p250", "p6", "p5"]
    assert len(Slow.ranges) == 3, "one stands there twice"
    Slow.ranges.clear()
    assert [e.prompt for e in found] == [f"p{i}" for i in range(300)]
    assert len(Slow.ranges) < 10, "rows that are all read come together"
    Slow.fails.append(TimeoutError("slow"))
    found.ahead(places)
    assert [found[i].prompt for i in places] == ["p5", "p250", "p6", "p5"]


def test_folders_patterns_and_files_beside():
    for name in (
        "train-00000-of-00002.jsonl",
        "sub/test.jsonl",
        "train-00001-of-00002.jsonl",
        "notes.md",
        "b.jsonl",
    ):
        put(f"memory://data/{name}", LINES if "00000" in name else LINES.replace('"id": "', f'"id": "{name}'))
    whole = task("memory://data/", splits={"train": "train-*.jsonl", "val": ["sub/test.jsonl"]})
    assert len(whole.examples("train")) == 600 and len(whole.examples("val")) == 300
    beside = task("memory://data/b.jsonl", splits={"val": "sub/test.jsonl"})
    assert beside.examples("val")[0].id == "sub/test.jsonl0" and beside.examples("train")[1].id == "b.jsonl1"
    put("memory://plain/train.jsonl", LINES)
    put("memory://plain/val.jsonl", LINES)
    assert [len(task("memory://plain").examples(split)) for split in ("train", "val")] == [300, 300]
    with pytest.raises(ConfigError, match=r"memory://data: no file `x-\*.jsonl`"):
        task("memory://data", splits={"train": "x-*.jsonl"}).examples("train")


@pytest.mark.parametrize(
    "address, said",
    [
        ("memory://nowhere/train.jsonl", "memory://nowhere/train.jsonl: there is no such file or folder"),
        ("nosuch://bucket/x.jsonl", r"nosuch://bucket/x.jsonl: cannot be read: .*rotocol.*`path: FOLDER`"),
    ],
)
def test_what_cannot_be_read(address, said):
    with pytest.raises(ConfigError, match=said):
        task(address).examples("train")


def test_a_package_that_is_missing_is_named():
    try:
        import s3fs  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"s3://bucket/x.jsonl: cannot be read: .*s3fs.*pip install"):
            task("s3://bucket/x.jsonl").examples("train")


def test_an_address_is_no_folder_of_lines():
    with pytest.raises(ValueError, match="which is one on this machine"):
        task("memory://data", lines={"en": "{split}.en"})


def test_what_fails_is_asked_again_and_then_told():
    put("slow://bucket/train.jsonl", LINES)
    found = task("slow://bucket/train.jsonl").examples("train")
    Slow.fails += [TimeoutError("slow"), OSError("reset")]
    assert found[3].prompt == "p3" and not Slow.fails
    Slow.fails += [TimeoutError("slow")] * 3
    with pytest.raises(
        ConfigError, match=r"slow://bucket/train.jsonl: cannot be read: TimeoutError: slow; where there"
    ):
        found[3]


def test_a_file_that_changes_is_refused(monkeypatch):
    put("slow://bucket/train.jsonl", LINES)
    found = task("slow://bucket/train.jsonl").examples("train")
    before = task("slow://bucket/train.jsonl").fingerprint("train")
    put("slow://bucket/train.jsonl", LINES.replace("p3", "q3"))
    monkeypatch.setattr(remote, "LOOKS", -1.0)
    with pytest.raises(ConfigError, match="the file has changed since it was first read"):
        found[3]
    other = task("slow://bucket/train.jsonl")
    assert other.examples("train")[3].prompt == "q3" and other.fingerprint("train") != before


class Plain(Slow):
    """A store that knows no versions of files."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("plain://", "slow://"))

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        found = super().info(path, **more)
        return {name: found[name] for name in ("name", "size", "type")}


def test_what_has_no_version_is_walked_over_each_time():
    fsspec.register_implementation("plain", Plain, clobber=True)
    put("plain://bucket/train.jsonl", LINES)
    first = task("plain://bucket/train.jsonl").fingerprint("train")
    put("plain://bucket/train.jsonl", LINES.replace("p3", "q3"))
    found = task("plain://bucket/train.jsonl")
    assert found.examples("train")[3].prompt == "q3" and found.fingerprint("train") != first


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Gives parts of files, which Python's own server does not."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None: ...


def test_a_web_server(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / "val.jsonl").write_text(LINES)
    for kind in (Ranges, http.server.SimpleHTTPRequestHandler):
        with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(kind, directory=str(tmp_path))
        ) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            there = task(
                f"http://127.0.0.1:{server.server_address[1]}/train.jsonl", splits={"val": "val.jsonl"}
            )
            if kind is Ranges:
                here = task(tmp_path / "train.jsonl")
                assert told(there.examples("train")) == told(here.examples("train"))
                assert len(there.examples("val")) == 300
                asked = f"http://me:hush-hush@127.0.0.1:{server.server_address[1]}/train.jsonl?Signature=hush/hush.csv"
                signed = task(asked).examples("train")
                assert told(signed) == told(here.examples("train"))
                with pytest.raises(ConfigError) as said:
                    task(asked.replace("train", "nothing")).examples("train")
                assert "hush" not in str(said.value) and "/nothing.jsonl: there is no such" in str(said.value)
            else:
                with pytest.raises(ConfigError, match=r"train.jsonl: cannot be read: .*`path: FOLDER`"):
                    there.examples("train")[200]
            server.shutdown()


def test_in_a_pipeline(tmp_path):
    file = tmp_path / "p.yaml"
    said = {
        "task": {"dataset": {"path": "memory://d/train.jsonl"}},
        "policy": {"causal-lm": {"path": "gpt2"}},
        "algorithm": "sft",
        "train": {"iterations": 1},
    }
    file.write_text(json.dumps(said))
    pipeline = load_pipeline(file, registry=Registry())
    assert pipeline.phases[0].task.options.path == "memory://d/train.jsonl"
    file.write_text(json.dumps({**said, "task": {"dataset": {"path": "train.jsonl"}}}))
    assert load_pipeline(file, registry=Registry()).phases[0].task.options.path == tmp_path / "train.jsonl"


def test_addresses():
    assert all(map(remote.is_url, ("s3://b/x", "hf://datasets/a/b", "filecache::s3://b/x", "memory://x")))
    assert not any(map(remote.is_url, ("train.jsonl", "/a/b", "./s3:/b", "C:\\x", "pkg:a/b")))
