"""Bundles of `canal export` that somebody changed, every digest made to fit: only opening them tells."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from canal.core.digests import canonical_json
from canal.registry.ledger.ledger import entry_hash
from canal.registry.transfer.bundle import About, parse_manifest, write_bundle

Files = dict[str, bytes]
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Malformed:
    """One change of a bundle: of which file, what it is, and the files that result."""

    name: str
    what: str
    files: Files


def read_bundle(path: Path) -> tuple[About, Files]:
    """Return what a bundle is about, and its files."""
    with zipfile.ZipFile(path) as archive:
        files = {one.filename: archive.read(one) for one in archive.infolist()}
    manifest = parse_manifest(files.pop("manifest.json"))
    return About(manifest.model, manifest.version, manifest.key, manifest.record), files


def write_agreeing(path: Path, about: About, files: Mapping[str, bytes]) -> None:
    """Write a bundle whose key, record, ledger and manifest agree on the files, whatever these hold."""
    files = dict(files)
    key = json.loads(files["version/key.json"])
    key["files"] = {
        name: _sha(files[f"version/{name}"]) for name in key["files"] if f"version/{name}" in files
    }
    for field, name in (
        ("teacher", "teacher/weights.safetensors"),
        ("verdict", "validation/verdict.json"),
        ("split", "split/cells.csv"),
    ):
        if field in key:
            key[field] = key["files"].get(name)
    files["version/key.json"] = _text(key)
    record = json.loads(files["version/record.json"])
    record["key"] = _sha(files["version/key.json"])
    record["files"] = {
        name: _sha(files[f"version/{name}"]) for name in record["files"] if f"version/{name}" in files
    }
    files["version/record.json"] = _text(record)
    keys = record["key"], _sha(files["version/record.json"])
    lines = [_signed_again(line, about, keys) for line in files["ledger.jsonl"].splitlines()]
    files["ledger.jsonl"] = b"".join(line + b"\n" for line in lines)
    write_bundle(path, About(about.model, about.version, *keys), files)


def _signed_again(line: bytes, about: About, digests: tuple[str, str]) -> bytes:
    """Return a line of the ledger that says other digests of the version, with a hash that is right."""
    entry = json.loads(line)
    if (entry["model"], entry["version"]) == (about.model, about.version):
        entry["key"], entry["record"] = digests
        entry["hash"] = entry_hash(entry)
    return canonical_json(entry).encode()


def _sha(content: bytes) -> str:
    return sha256(content).hexdigest()


def _text(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def malformed(files: Files, seed: int = 0) -> Iterator[Malformed]:
    """Yield changed bundles without end: every kind of every file, then again at other places."""
    for turn in count():
        yield from every_kind(files, f"{seed} {turn}")


def every_kind(files: Files, seed: str) -> Iterator[Malformed]:
    """Yield each file changed in each way, once, and left out; a seed decides where."""
    for name in sorted(files):
        for what, mutate in _mutations(name):
            changed = mutate(files[name], random.Random(f"{seed} {name} {what}"))
            if changed != files[name]:
                yield Malformed(name, what, {**files, name: changed})
        if _needed(name):
            yield Malformed(name, "gone", {one: value for one, value in files.items() if one != name})


def _needed(name: str) -> bool:
    if name.startswith("ancestors/"):
        return not name.endswith(("/record.json", "/sums/missing.json"))
    return name.startswith(("version/model/", "version/teacher/", "version/sums/"))


def _mutations(name: str) -> list[tuple[str, Mutate]]:
    if not name.startswith(("version/model/", "version/teacher/", "version/sums/")):
        return []
    if name.endswith(".safetensors"):
        return [*_HEADERS.items(), *_TENSORS.items()]
    if name.endswith((".json",)) and "ontology" not in name:
        return list(_DOCUMENTS.items())
    return []


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _with_header(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    header, data = _header(content)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _first(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    return header[draw.choice(sorted(name for name in header if not name.startswith("__")))]


def _offsets(by: int) -> Mutate:
    def change(content: bytes, draw: random.Random) -> bytes:
        def shift(header: dict[str, Any]) -> None:
            one = _first(header, draw)
            one["data_offsets"] = [one["data_offsets"][0], one["data_offsets"][1] + by]

        return _with_header(content, shift)

    return change


def _shape(content: bytes, draw: random.Random) -> bytes:
    def change(header: dict[str, Any]) -> None:
        _first(header, draw)["shape"] = [2**40, 2**40]

    return _with_header(content, change)


def _kind(content: bytes, draw: random.Random) -> bytes:
    def change(header: dict[str, Any]) -> None:
        _first(header, draw)["dtype"] = "F128"

    return _with_header(content, change)


_HEADERS: dict[str, Mutate] = {
    "header of 2^63 bytes": lambda content, _: struct.pack("<Q", 2**63) + content[8:],
    "header beyond the file": lambda content, _: struct.pack("<Q", len(content)) + content[8:],
    "header of no JSON": lambda content, _: content[:8] + b"\xff" * 16 + content[24:],
    "cut short": lambda content, draw: content[: draw.randrange(8, len(content))],
    "bytes behind the end": lambda content, _: content + b"\0" * 64,
    "nothing": lambda *_: b"",
    "offsets beyond the file": _offsets(1 << 40),
    "offsets that overlap": _offsets(4),
    "a shape beyond all bounds": _shape,
    "a type that there is not": _kind,
}


def _tensors(change: Callable[[dict[str, np.ndarray], str], None]) -> Mutate:
    def mutate(content: bytes, draw: random.Random) -> bytes:
        arrays = {name: value.copy() for name, value in load(content).items()}
        change(arrays, draw.choice(sorted(arrays)))
        about = _header(content)[0].get("__metadata__")
        return save(arrays, about)

    return mutate


def _fill(value: float) -> Callable[[dict[str, np.ndarray], str], None]:
    def change(arrays: dict[str, np.ndarray], name: str) -> None:
        floats = sorted(one for one, array in arrays.items() if array.dtype.kind == "f" and array.size)
        if floats:
            arrays[floats[len(name) % len(floats)]].reshape(-1)[-1] = value

    return change


def _renamed(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[f"{name}.x"] = arrays.pop(name)


def _longer(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name] = np.concatenate([arrays[name].reshape(-1)] * 2)


def _text_of(arrays: dict[str, np.ndarray], name: str) -> None:
    arrays[name] = arrays[name].astype(np.int8)


_TENSORS: dict[str, Mutate] = {
    "not a number": _tensors(_fill(np.nan)),
    "infinity": _tensors(_fill(np.inf)),
    "a tensor less": _tensors(lambda arrays, name: arrays.__delitem__(name)),
    "a tensor more": _tensors(lambda arrays, name: arrays.update({"x": arrays[name]})),
    "a tensor by another name": _tensors(_renamed),
    "a tensor of another shape": _tensors(_longer),
    "a tensor of another type": _tensors(_text_of),
}


def _json(change: Callable[[Any, random.Random], Any]) -> Mutate:
    return lambda content, draw: _text(change(json.loads(content), draw))


_OPTIONAL = {"novelty", "temperature"}
"""What a model may do without: it answers otherwise then, but it answers."""


def _one_less(document: Any, draw: random.Random) -> Any:
    if isinstance(document, list):
        return document[:-1]
    names = sorted(document.keys() - _OPTIONAL)
    gone = draw.choice(names) if names else None
    return {name: value for name, value in document.items() if name != gone} if names else []


def _twice(document: Any, _: random.Random) -> Any:
    return (
        [*document, document[0]] if isinstance(document, list) else {"format": 99, **_unformatted(document)}
    )


def _unformatted(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "format"}


_DOCUMENTS: dict[str, Mutate] = {
    "no JSON": lambda *_: b"{",
    "nested without end": lambda *_: b"[" * 100_000,
    "nothing": lambda *_: b"",
    "another kind of JSON": lambda *_: b'"x"\n',
    "one less": _json(_one_less),
    "twice, or another format": _json(_twice),
    "not UTF-8": lambda content, _: b"\xff" + content,
}
