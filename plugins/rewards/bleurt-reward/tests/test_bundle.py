"""The reader of TensorFlow's checkpoints: what it reads, and that whatever else it is given is refused in words."""

from __future__ import annotations

import random
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlalign_plugin_bleurt_reward import bundle
from rlalign_plugin_bleurt_reward.bundle import DTYPES, MAGIC, Bundle, CheckpointError
from rlalign_plugin_bleurt_reward.crc import CHUNK, crc32c, masked
from rlalign_plugin_bleurt_reward.snappy import decompressed
from rlalign_plugin_bleurt_reward.testing import block_of, field, table, varint, write_bundle

DATA = Path(__file__).with_name("data")
HEADER = (b"", field(1, 1))
MOST = 2**20


def literal(data: bytes) -> bytes:
    """Raw snappy of literals alone."""
    pieces = [data[i : i + 60] for i in range(0, len(data), 60)]
    return varint(len(data)) + b"".join(bytes([len(piece) - 1 << 2]) + piece for piece in pieces)


# -- checksums -------------------------------------------------------------------------------------------------------


def test_crc_of_known_texts():
    """RFC 3720, appendix B.4."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert masked(0) == 0xA282EAD8 and masked(1 << 15) == 0xA282EAD9


def crc_by_bits(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 1000, 4095, 4097, 20001])
def test_crc_of_any_length(size):
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == crc_by_bits(data)


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 3, 2 * CHUNK + 1])
def test_crc_of_several_chunks(size, monkeypatch):
    data = numpy.random.default_rng(size).integers(0, 256, size, dtype=numpy.uint8)
    whole = crc32c(data)
    monkeypatch.setattr("rlalign_plugin_bleurt_reward.crc.CHUNK", 4 * CHUNK)
    assert crc32c(data) == whole
    data[size // 2] ^= 1
    assert crc32c(data) != whole


# -- snappy ----------------------------------------------------------------------------------------------------------


def test_snappy_of_literals_and_copies():
    assert decompressed(b"\x00", MOST) == b""
    assert decompressed(literal(b"abc" * 50), MOST) == b"abc" * 50
    # "ab", then 8 bytes from 2 back: the copy overlaps what it makes (one-byte offset)
    assert decompressed(varint(10) + b"\x04ab" + bytes([(8 - 4) << 2 | 1, 2]), MOST) == b"ab" * 5
    # the same with offsets of two and of four bytes, and of an odd length
    assert decompressed(varint(9) + b"\x04ab" + bytes([(7 - 1) << 2 | 2, 2, 0]), MOST) == b"ababababa"
    assert decompressed(varint(9) + b"\x04ab" + bytes([(7 - 1) << 2 | 3, 2, 0, 0, 0]), MOST) == b"ababababa"
    # high bits of a one-byte offset
    far = bytes(range(256)) * 2
    copied = decompressed(
        varint(len(far) + 4) + literal(far)[2:] + bytes([(300 >> 8) << 5 | 1, 300 & 255]), MOST
    )
    assert copied == far + far[-300:-296]
    # literals whose lengths take one to four bytes more
    for wide in (1, 2, 3, 4):
        tag = bytes([59 + wide << 2]) + (99).to_bytes(wide, "little")
        assert decompressed(varint(100) + tag + b"x" * 100, MOST) == b"x" * 100


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "how long"),
        (b"\xff" * 6, "how long"),
        (varint(2**30) + b"\x00a", "more than"),
        (varint(5) + b"\x00a", "less than"),
        (varint(1) + b"\x04ab", "more than it says"),
        (varint(4) + b"\x0cab", "cut short"),
        (varint(4) + b"\xf0", "cut short"),
        (varint(8) + b"\x00a\x01", "cut short"),
        (varint(8) + b"\x00a\x01\x02", "before its start"),
        (varint(8) + b"\x00a\x01\x00", "before its start"),
        (varint(2) + b"\x00a\x01\x01", "more than it says"),
        (varint(8) + b"\x00a\x03\xff\xff\xff\xff", "before its start"),
    ],
)
def test_snappy_that_is_none(data, words):
    with pytest.raises(ValueError, match=words):
        decompressed(data, MOST)


@settings(max_examples=300, deadline=2000, derandomize=True, database=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_snappy(data):
    try:
        assert len(decompressed(data, MOST)) <= MOST
    except ValueError:
        pass


# -- what it reads -----------------------------------------------------------------------------------------------------


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        f"group/{str(dtype).removeprefix('torch.')}": torch.randint(0, 2, (3, 5), generator=generator).to(
            dtype
        )
        for dtype in DTYPES.values()
    }
    return found | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
        "long": torch.randn(70_001, generator=generator),
        "no name that shares a prefix": torch.arange(3),
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("entries_a_block", [1, 4, 100])
@pytest.mark.parametrize("compressed", [None, literal])
def test_what_was_written_is_read(tmp_path, shards, entries_a_block, compressed):
    written = tensors()
    prefix = tmp_path / "some.variables"
    write_bundle(prefix, written, shards=shards, entries_a_block=entries_a_block, compressed=compressed)
    read = Bundle(prefix)
    assert read.entries.keys() == written.keys()
    for name, tensor in written.items():
        found = read.tensor(name)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor), name


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_what_tensorflow_wrote_is_read(kind):
    """`global_step` counts the two steps that made these weights."""
    read = Bundle(DATA / kind / "variables/variables")
    assert read.tensor("global_step").dtype == torch.int64
    assert len(read.entries) == {"wordpiece": 42, "sentencepiece": 60}[kind]
    assert read.tensor("dense/kernel").shape == ({"wordpiece": 32, "sentencepiece": 36}[kind], 1)


def test_what_snappy_compressed_is_read(tmp_path):
    source = DATA / "wordpiece/variables"
    shutil.copy(source / "variables.snappy.index", tmp_path / "v.index")
    shutil.copy(source / "variables.data-00000-of-00001", tmp_path / "v.data-00000-of-00001")
    compressed, plain = Bundle(tmp_path / "v"), Bundle(source / "variables")
    assert compressed.entries == plain.entries
    assert torch.equal(compressed.tensor("dense/kernel"), plain.tensor("dense/kernel"))


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prefix(tmp_path) -> Path:
    write_bundle(tmp_path / "v", {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)})
    return tmp_path / "v"


def index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def record(dtype=1, shape=(2, 3), shard=0, start=0, size=24, more=b"") -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    said = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, start) + field(5, size)
    return said + b"\x35" + struct.pack("<I", 0) + more


def refused(prefix: Path, words: str, name: str | None = None) -> None:
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=words) as caught:
        Bundle(prefix).tensor(name or "a")
    assert str(prefix.parent) in str(caught.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(b"a", record())], "no header"),
        ([(b"", field(1, 0))], "0 files"),
        ([(b"", field(1, 10**6))], "1000000 files"),
        ([(b"", field(1, 1) + field(2, 1))], "big-endian"),
        ([(b"", b"\x0b")], "of kind 3"),
        ([(b"", b"\x0a\x7f")], "cut short"),
        ([(b"", field(1, b"x"))], "bytes in place of a number"),
        ([HEADER, (b"a", record(more=field(7, b"")))], "in slices"),
        ([HEADER, (b"a", field(2, 3))], "a number in place of a message"),
        ([HEADER, (b"a", field(2, field(3, 1)))], "has no shape"),
        ([HEADER, (b"a", record(shard=1))], "file 1 of 1"),
        ([HEADER, (b"a", record(shape=[1] * 9))], "shape or place"),
        ([HEADER, (b"a", record(shape=[2**63]))], "shape or place"),
        ([HEADER, (b"a", record(start=2**63 - 1, size=2**63 - 1))], "shape or place"),
        ([HEADER, (b"a", record()), (b"a", record())], "not in order"),
        ([HEADER, (b"b", record()), (b"a", record())], "not in order"),
        ([HEADER, (b"a", record()), (b"b", record())], "`a` and `b` lie on the same bytes"),
        ([HEADER, (b"a", record()), (b"b", record(start=23))], "`a` and `b` lie on the same bytes"),
        ([HEADER, (b"\xff", record())], "utf-8"),
        ([HEADER, (b"a" * 1001, record())], "beyond its block"),
        ([HEADER, (b"a", record(size=20))], "takes 20 bytes"),
        ([HEADER, (b"a", record(shape=[0, 2**40, 2**40], size=0))], "shape or place"),
        ([HEADER, (b"a", record(dtype=7))], "TensorFlow's type 7"),
        ([HEADER, (b"a", record(start=17))], "it is cut short"),
        ([HEADER, (b"a", record(shape=[2**40], size=2**42))], "it is cut short"),
        ([HEADER, (b"a", record())], "checksum of `a`"),
    ],
)
def test_an_index_that_says_what_cannot_be(prefix, entries, words):
    index_of(prefix).write_bytes(table([entries]))
    refused(prefix, words)


def test_a_file_of_tensors_that_is_missing_cut_short_or_damaged(prefix):
    data = prefix.with_name("v.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[:3] + b"\xff" + whole[4:])
    refused(prefix, r"v\.data-00000-of-00001: is damaged: the checksum of `a`")
    data.write_bytes(whole[:20])
    refused(prefix, r"v\.data-00000-of-00001: holds 20 bytes, and `a` ends at 24")
    data.unlink()
    refused(prefix, r"v\.data-00000-of-00001: there is no such file, and `a` lies in it")
    data.mkdir()
    with pytest.raises(Exception, match="is no file"):
        Bundle(prefix).tensor("a")


def test_one_of_several_files_is_missing(tmp_path):
    write_bundle(tmp_path / "v", {"a": torch.ones(2), "b": torch.ones(2)}, shards=2)
    (tmp_path / "v.data-00001-of-00002").unlink()
    refused(tmp_path / "v", "v.data-00001-of-00002: there is no such file, and `b`", "b")


def test_an_index_that_is_none(prefix):
    index = index_of(prefix)
    whole = index.read_bytes()
    for damaged, words in (
        (b"", "cut short"),
        (whole[:40], "cut short"),
        (whole[:-1], "magic"),
        (whole[:-8] + b"\0" * 8, "magic"),
        (whole[100:], "beyond its end|checksum"),
        (whole[:10] + b"\x00" + whole[11:], "checksum of a block"),
        (whole[:-48] + b"\xff" * 40 + whole[-8:], "too long"),
        (
            whole[:-48] + (varint(0) * 2 + varint(2**62) + varint(9)).ljust(40, b"\0") + whole[-8:],
            "beyond its end",
        ),
    ):
        index.write_bytes(damaged)
        refused(prefix, words)
    index.unlink()
    refused(prefix, "no such file")


def sealed(content: bytes, kind: int = 0) -> bytes:
    whole = content + bytes([kind])
    return whole + struct.pack("<I", masked(crc32c(whole)))


def whole_index(block: bytes, handles: list[bytes], kind: int = 0) -> bytes:
    """An index of one block, which `handles` point at."""
    first = sealed(block, kind)
    places = sealed(block_of([(b"%06d" % i, handle) for i, handle in enumerate(handles)]))
    footer = varint(0) + varint(0) + varint(len(first)) + varint(len(places) - 5)
    return first + places + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (block_of([]), 0, "it is empty"),
        (b"", 0, "cut short"),
        (b"\xff\xff\xff\xff", 0, "restarts"),
        (b"\x00\x05\x00" + bytes(4), 0, "beyond its block|restarts"),
        (b"\x01\x00\x00" + struct.pack("<II", 0, 1), 0, "beyond its block"),
        (b"\x00\x00\xff\xff\xff\xff\x0f" + struct.pack("<II", 0, 1), 0, "beyond its block"),
        (b"\xff" * 12 + struct.pack("<II", 0, 1), 0, "too long"),
        (b"abc", 2, "compressed in a way"),
        (varint(2**31) + b"\x00a", 1, "unpacks to 2147483648 bytes"),
    ],
)
def test_a_block_that_is_none(prefix, content, kind, words):
    index_of(prefix).write_bytes(whole_index(content, [varint(0) + varint(len(content))], kind))
    refused(prefix, words)


def test_blocks_that_overlap(prefix):
    """A block that many point at would be read as often."""
    empty = struct.pack("<I", 2**16 - 1) * 2**16
    handle = varint(0) + varint(len(empty))
    index_of(prefix).write_bytes(whole_index(empty, [handle] * 10_000))
    refused(prefix, "blocks overlap")


def test_a_name_that_grows(prefix):
    """Each entry of four bytes would make a name longer by one: a square of the file in memory and time."""
    content = b"".join(varint(i) + b"\x01\x00a" for i in range(200_000)) + struct.pack("<II", 0, 1)
    index_of(prefix).write_bytes(whole_index(content, [varint(0) + varint(len(content))]))
    refused(prefix, "beyond its block|no header")


def test_an_index_that_names_too_much(prefix, monkeypatch):
    monkeypatch.setattr(bundle, "ENTRIES", 10)
    write_bundle(prefix, {f"a{i:02d}": torch.ones(1) for i in range(11)})
    refused(prefix, "more than 10 tensors")


def test_an_index_that_is_too_large(prefix):
    with index_of(prefix).open("r+b") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(Exception, match="more than 4 MiB"):
        Bundle(prefix)


def test_snappy_that_would_fill_the_memory(prefix):
    """60 bytes a copy: a file of the largest size unpacks to no more than an index may hold."""
    bomb = varint(2**22) + b"\x00a" + b"\xfe\x01\x00" * 2**14
    index_of(prefix).write_bytes(whole_index(bomb, [varint(0) + varint(len(bomb))], 1))
    tracemalloc.start()
    refused(prefix, "cut short|no header|beyond|restarts|less|more")
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


# -- whatever else -----------------------------------------------------------------------------------------------------


@st.composite
def mutations(draw) -> tuple[str, list[tuple[int, int, bytes]]]:
    """Some pieces of one of the files, each replaced by others of any length."""
    which = draw(st.sampled_from(["index", "index", "data-00000-of-00001"]))
    cut = st.tuples(st.integers(0, 700), st.integers(0, 30), st.binary(max_size=12))
    return which, draw(st.lists(cut, min_size=1, max_size=4))


def mended(index: bytes) -> bytes:
    """Checksums that are right again, so that a mutation is not found by them alone."""
    try:
        at, places = len(index) - 48, []
        for _ in range(4):
            number, at = bundle._varint(index, at, len(index) - 8)
            places.append(number)
        spots = [(places[2], places[3])]
        for _, value in bundle._entries(index[places[2] : places[2] + places[3]]):
            start, at = bundle._varint(value, 0, len(value))
            spots.append((start, bundle._varint(value, at, len(value))[0]))
    except (ValueError, struct.error):
        return index
    made = bytearray(index)
    for start, size in spots:
        if start + size + 5 <= len(index):
            made[start + size + 1 : start + size + 5] = struct.pack(
                "<I", masked(crc32c(bytes(made[start : start + size + 1])))
            )
    return bytes(made)


@pytest.mark.parametrize("examples", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("compressed", [None, literal], ids=["plain", "snappy"])
@pytest.mark.parametrize("mend", [False, True], ids=["as they are", "checksums mended"])
def test_mutations_are_read_or_refused(tmp_path, compressed, mend, examples):
    prefix = tmp_path / "v"
    write_bundle(prefix, tensors_small(), entries_a_block=3, compressed=compressed)
    originals = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    outcomes = {"read": 0, "refused": 0}

    @settings(
        max_examples=examples,
        deadline=2000,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(mutations())
    def check(mutation):
        which, cuts = mutation
        name = f"v.{which}"
        data = originals[name]
        for start, length, put in cuts:
            start %= len(data) + 1
            data = data[:start] + put + data[start + length :]
        for path, original in originals.items():
            (tmp_path / path).write_bytes(original)
        (tmp_path / name).write_bytes(mended(data) if mend and which == "index" else data)
        tracemalloc.start()
        try:
            read = Bundle(prefix)
            for tensor in read.entries:
                assert read.tensor(tensor).numel() <= 10_000
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += str(tmp_path) in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 16 * 2**20

    check()
    assert outcomes["refused"] > examples / 3 and sum(outcomes.values()) >= examples


def tensors_small() -> dict[str, torch.Tensor]:
    return {
        f"bert/layer_{i}/{part}": torch.full((i, 3), 1.5) for i in range(1, 5) for part in ("beta", "gamma")
    }
