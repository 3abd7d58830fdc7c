"""TensorBoard events: curves, texts, and a pipeline for its HPARAMS tab. Each function gives the bytes of records.

tensorboardX's messages and checksum, not its writer: that one writes from a thread, so a file's length would say
nothing. They are imported inside, because that takes a second.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def version() -> bytes:
    """What a file begins with."""
    return _record(file_version="brain.Event:2")


def scalars(values: Mapping[str, float], step: int) -> bytes:
    """A point on each curve."""
    return _summary([{"tag": tag, "simple_value": x} for tag, x in values.items()], step=step)


def texts(tag: str, shown: Sequence[str], step: int) -> bytes:
    """Texts below one another, as they are: for Markdown each is a block of code."""
    blocks = "\n\n---\n\n".join(_block(text) for text in shown)
    return _summary([_text(tag, blocks)], step=step)


def started(pipeline: Mapping[str, Any], text: str) -> bytes:
    """The pipeline, as text and as the hyper-parameters of a session that begins."""
    from tensorboardX.proto.plugin_hparams_pb2 import SessionStartInfo

    info = SessionStartInfo(start_time_secs=time.time())
    for name, value in settings({key: part for key, part in pipeline.items() if key != "folder"}):
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = str(value).encode("utf-8", "backslashreplace").decode()
    return _summary([_text("pipeline", _block(text)), _session(session_start_info=info)], step=0)


def ended() -> bytes:
    """The session is over, and went well."""
    from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
    from tensorboardX.proto.plugin_hparams_pb2 import SessionEndInfo

    info = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
    return _summary([_session(session_end_info=info)], step=0)


def settings(said: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a pipeline by dotted path; a list of plain values is one of them."""
    if isinstance(said, Mapping):
        for key, part in said.items():
            yield from settings(part, f"{place}.{key}" if place else str(key))
    elif isinstance(said, list) and any(isinstance(part, Mapping | list) for part in said):
        for i, part in enumerate(said):
            yield from settings(part, f"{place}[{i}]")
    elif said is not None:
        yield place, json.dumps(said, ensure_ascii=False) if isinstance(said, list) else said


def _block(text: str) -> str:
    """Four spaces before each line: whatever stands there, Markdown leaves it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _text(tag: str, text: str) -> dict[str, Any]:
    from tensorboardX.proto import summary_pb2, tensor_pb2, tensor_shape_pb2

    # A lone surrogate, which UTF-8 cannot hold, becomes `\udXXX`.
    data = text.encode("utf-8", "backslashreplace")
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    return {
        "tag": tag,
        "metadata": summary_pb2.SummaryMetadata(
            plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        ),
        "tensor": tensor_pb2.TensorProto(dtype="DT_STRING", string_val=[data], tensor_shape=shape),
    }


def _session(**info: Any) -> dict[str, Any]:
    from tensorboardX.proto import summary_pb2
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    (which,) = info
    content = HParamsPluginData(version=0, **info).SerializeToString()
    about = summary_pb2.SummaryMetadata.PluginData(plugin_name="hparams", content=content)
    return {"tag": f"_hparams_/{which}", "metadata": summary_pb2.SummaryMetadata(plugin_data=about)}


def _summary(values: Sequence[Mapping[str, Any]], step: int) -> bytes:
    from tensorboardX.proto import summary_pb2

    made = [summary_pb2.Summary.Value(**value) for value in values]
    return _record(summary=summary_pb2.Summary(value=made), step=step)


def _record(**event: Any) -> bytes:
    """An event in TFRecord framing: length, its checksum, data, its checksum."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))
