"""Changes of valid files, drawn by a generator: of bytes, HDF5 objects, zarr stores, texts and JSON."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator
Mutate = Callable[[Path, Rng], None]
FAILED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise where a change does not fit what was drawn: another one is made then."""


def drawn(rng: Rng, of: Sequence[Any]) -> Any:
    """Return one of several things of any kind."""
    return of[int(rng.integers(len(of)))]


def flip(path: Path, rng: Rng) -> None:
    """Flip a few bytes anywhere, or cut the file short."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    if rng.random() < 0.2 and len(data) > 1:
        data = data[: int(rng.integers(1, len(data)))]
    for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


# --- HDF5 -----------------------------------------------------------------------------------------------


def paths_of(file: h5py.File) -> list[str]:
    """Return the paths of all objects."""
    found: list[str] = []
    file.visit(found.append)
    return sorted(found)


def _datasets(file: h5py.File, kinds: str = "") -> list[str]:
    """Return the paths of datasets whose values may be read: an earlier change may claim 10^12 of them."""
    nodes = [(one, file.get(one)) for one in paths_of(file)]
    found = [
        (one, node) for one, node in nodes if isinstance(node, h5py.Dataset) and (node.size or 0) < 10**6
    ]
    return [one for one, node in found if not kinds or (node.size and node.dtype.kind in kinds)]


def edit(path: Path, rng: Rng) -> None:
    """Change one thing of an HDF5 file: remove, replace, retype, resize, or edit values."""
    with h5py.File(path, "r+") as file:
        key = str(rng.choice(paths_of(file)))
        node = file[key]
        action = int(rng.integers(7))
        if action == 0:
            del file[key]
        elif action == 1 and node.attrs:
            name = str(rng.choice(sorted(node.attrs)))
            del node.attrs[name]
            if rng.random() < 0.7:
                odd = [b"\xff\xfe", -5, np.nan, "csr_matrix", "nonsense", np.array([3, -1]), np.array([1e30])]
                node.attrs[name] = odd[int(rng.integers(len(odd)))]
        elif isinstance(node, h5py.Group):
            del file[key]
            file[key] = rng.random(3)
        else:
            _edit_values(file, key, action, rng)


def _edit_values(file: h5py.File, key: str, action: int, rng: Rng) -> None:
    if key not in _datasets(file):
        raise ValueError(key)
    values = file[key][()]
    kind = np.asarray(values).dtype.kind
    if action <= 3 and kind in "iufb" and np.size(values):
        values = np.array(values)
        odd = [-1, 0, 2**31 - 1, 99] if kind in "iub" else [np.nan, np.inf, -3.0, 1e38, 0.5]
        places = rng.integers(values.size, size=3)
        with np.errstate(over="ignore", invalid="ignore"):
            values.reshape(-1)[places] = np.array(odd[int(rng.integers(len(odd)))]).astype(values.dtype)
    elif action == 4 and np.ndim(values):
        values = values[: len(values) // 2]
    elif action == 5:
        text = np.array([b"\xff\x00x"] * max(1, np.size(values)), dtype=object)
        values = text if np.ndim(values) else b"\xff"
    else:
        values = np.zeros((2, 2, 2))
    attrs = dict(file[key].attrs)
    del file[key]
    try:
        file[key] = values
    except (TypeError, ValueError):
        file[key] = np.zeros(1)
    for name, value in attrs.items():
        file[key].attrs[name] = value


_ATTRIBUTES: tuple[Any, ...] = (
    *("", "x" * 40_000, "dataframe", "csc_matrix", "csr_matrix", "array", "categorical", "nullable-integer"),
    *("string-array", "_index", "..", "/", "/X", "é\u202e", b"\xff", -1, 2**62, 1e308, np.nan, True),
    *(np.array([], dtype="f8"), np.array([2**62, 2**62]), np.array([0, 0]), np.array([80.5, 40.0])),
    *(np.array(["a", "a"], dtype=object), np.zeros((2, 2)), h5py.Empty("f4"), h5py.Empty("S4")),
)
_KINDS = (
    *("f8", "f2", ">f4", "i8", "i1", "u8", ">i4", "c8", "?", "S3", "S1", "V4", "u1", "i2"),
    *(np.dtype([("r", "f4"), ("i", "f4")]), h5py.enum_dtype({"a": 0, "b": 1}, "i1"), h5py.string_dtype()),
    *(h5py.string_dtype("ascii", 2), h5py.vlen_dtype("i4"), h5py.ref_dtype, h5py.opaque_dtype("M8[s]")),
)
_SHAPES = ((), (0,), (1,), (3, 3), (10**9,), (10**12,), (2**40, 2**20), (7, 0), (1, 1, 1, 1))
_LINKS = ("external", "text", "virtual", "itself", "circle", "nowhere", "root", "sibling", "deep")


def _attribute(file: h5py.File, rng: Rng) -> None:
    """Give an attribute that is there, or one that readers look for, another value."""
    node = file[drawn(rng, ["/", *paths_of(file)])]
    known = ["encoding-type", "encoding-version", "_index", "column-order", "shape", "ordered", "categories"]
    name = drawn(rng, [*node.attrs, *node.attrs, *known])
    with suppress(KeyError):
        del node.attrs[name]
    node.attrs[name] = drawn(rng, _ATTRIBUTES)


def _retype(file: h5py.File, rng: Rng) -> None:
    """Store the values of a dataset as another type, or another shape that holds nothing."""
    key = drawn(rng, _datasets(file))
    node, attrs = file[key], dict(file[key].attrs)
    values, kind = node[()], drawn(rng, _KINDS)
    del file[key]
    if rng.random() < 0.6:
        try:
            with np.errstate(all="ignore"):
                file.create_dataset(key, data=np.asarray(values).astype(kind), dtype=kind)
        except FAILED:
            file.create_dataset(key, np.shape(values), dtype=kind)
    else:
        shape = drawn(rng, _SHAPES)
        size = tuple(min(max(one, 1), 1000) for one in shape) or None
        file.create_dataset(key, shape, dtype=kind, chunks=size, compression="gzip" if size else None)
    file[key].attrs.update(attrs)


def _index_arrays(file: h5py.File, rng: Rng) -> None:
    """Change whole numbers that point at others: codes, indices, pointers, masks."""
    numbers = _datasets(file, "iub")
    preferred = [one for one in numbers if one.rpartition("/")[2] in ("indptr", "indices", "codes", "shape")]
    key = drawn(rng, preferred or numbers)
    values = np.array(file[key][()]).reshape(-1)
    action, place = int(rng.integers(6)), int(rng.integers(values.size))
    with np.errstate(all="ignore"):
        if action == 0:
            rng.shuffle(values)
        elif action == 1:
            values = values[::-1]
        elif action == 2:
            values = values + values.dtype.type(1)
        elif action == 3:
            values[place:] = values[place]
        elif action == 4:
            values[place] = np.array(drawn(rng, [-1, -(2**31), 2**31 - 1, 2**62, 127, 200])).astype(
                values.dtype
            )
        else:
            values[:] = 0
    file[key][...] = values.reshape(file[key].shape)


def _link(file: h5py.File, rng: Rng) -> None:
    """Put a link in the place of an object, or add one."""
    keys = paths_of(file)
    key, kind = drawn(rng, keys), drawn(rng, _LINKS)
    outside = Path(file.filename).parent / "outside"
    shape = file[key].shape if isinstance(file[key], h5py.Dataset) and file[key].shape else (3,)
    if rng.random() < 0.7:
        del file[key]
    else:
        key = f"{key}-more" if isinstance(file[key], h5py.Dataset) else f"{key}/more"
    if kind == "external":
        file[key] = h5py.ExternalLink(str(outside / "other.h5ad"), drawn(rng, ["/X", "/obs", "/", "/uns"]))
    elif kind == "text":
        size = int(np.prod(shape))
        file.create_dataset(key, shape, "S2", external=[(str(outside / "secret.txt"), 0, 2 * size)])
    elif kind in ("virtual", "itself"):
        layout = h5py.VirtualLayout(shape, "f4")
        where = "." if kind == "itself" else str(outside / "other.h5ad")
        layout[...] = h5py.VirtualSource(where, key if kind == "itself" else "X/data", shape)
        file.create_virtual_dataset(key, layout)
    elif kind == "circle":
        file[key] = h5py.SoftLink(f"/{key}-back")
        file[f"{key}-back"] = h5py.SoftLink(f"/{key}")
    elif kind == "deep":
        file[key + "/a" * 600] = 1
    else:
        there = {"nowhere": "/nothing", "root": "/", "sibling": f"/{drawn(rng, keys)}"}[kind]
        file[key] = h5py.SoftLink(there)


def _names(file: h5py.File, rng: Rng) -> None:
    """Rename, copy or add an object, or write odd texts among its texts."""
    keys = paths_of(file)
    key, action = drawn(rng, keys), int(rng.integers(4))
    if action == 0:
        file.move(key, drawn(rng, ["moved", "é", "a b", "X", "layers/counts", "obs/canal_vote", "x" * 3000]))
    elif action == 1:
        file.copy(key, drawn(rng, ["raw", "obs/again", "uns/again", "layers/again", "var/again"]))
    else:
        key = drawn(rng, [one for one in _datasets(file, "O") if file[one].shape])
        odd = ["", "nan", "x" * 100_000, "\x1b[2J", "a\nb", "CD3D", "=1+1", "Unassigned", "é" * 300, "\u202e"]
        values = file[key][()]
        values[rng.integers(len(values), size=drawn(rng, [1, 3, len(values)]))] = drawn(rng, odd).encode()
        file[key][...] = values


def _values(file: h5py.File, rng: Rng) -> None:
    """Turn all of a matrix's values into something else."""
    key = drawn(rng, [one for one in _datasets(file, "fi") if file[one].size > 100])
    values = np.asarray(file[key][()], dtype=np.float64)
    with np.errstate(all="ignore"):
        same = [values * 0, values - 1, values / 3, -values, values * 1e30, values % 2, np.sqrt(values)]
        changed = drawn(rng, [*same, np.log1p(values), np.log1p(np.log1p(values))])
        file[key][...] = changed.astype(file[key].dtype)


def _object(path: Path, rng: Rng) -> None:
    change = drawn(rng, [_attribute, _retype, _index_arrays, _link, _names, _values])
    with h5py.File(path, "r+") as file:
        change(file, rng)


def hdf5(path: Path, rng: Rng) -> None:
    """Change an HDF5 file once or twice."""
    before = path.read_bytes()
    for _ in range(int(rng.integers(1, 3))):
        try:
            drawn(rng, [_object, _object, _object, _object, edit, flip])(path, rng)
        except FAILED:
            path.write_bytes(before)
            flip(path, rng)
            return


# --- folders --------------------------------------------------------------------------------------------


def in_folder(change: Mutate) -> Mutate:
    """Return what changes one file of a folder by ``change``, or which files there are."""

    def mutate(folder: Path, rng: Rng) -> None:
        files = sorted(one for one in folder.rglob("*") if one.is_file())
        for _ in range(int(rng.integers(1, 3))):
            file = drawn(rng, files)
            if not file.is_file() or file.is_symlink():
                continue
            if rng.random() < 0.7:
                change(file, rng)
            else:
                _entry(folder, file, rng)

    return mutate


def _entry(folder: Path, file: Path, rng: Rng) -> None:
    """Remove a file, or put something else in its place or beside it."""
    outside = folder.parent / "outside" / "secret.txt"
    action = int(rng.integers(9))
    if action == 0:
        file.unlink()
    elif action == 1:
        file.write_bytes(b"")
    elif action == 2:
        file.unlink()
        file.mkdir()
    elif action == 3:
        file.unlink()
        file.symlink_to(outside)
    elif action == 4:
        file.unlink()
        os.mkfifo(file)
    elif action == 5 and file.parent != folder:
        shutil.rmtree(file.parent)
        file.parent.symlink_to(drawn(rng, [outside.parent, folder, "nowhere"]))
    elif action == 6:
        shutil.copyfile(file, file.with_name(drawn(rng, [f"{file.name}.gz", "0.0", "é", "matrix.mtx", "c"])))
    elif action == 7:
        file.rename(file.with_name(drawn(rng, [f"{file.name}.old", f"GSM1_{file.name}", file.name.upper()])))
    else:
        file.chmod(0)


def zarr_file(path: Path, rng: Rng) -> None:
    """Change a file of a zarr store: its JSON as such, a chunk by its bytes."""
    if path.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"):
        json_file(path, rng)
    else:
        flip(path, rng)


def mtx_file(path: Path, rng: Rng) -> None:
    """Change a text of a 10x folder, packed or not."""
    if path.suffix != ".gz":
        text_file(path, rng)
        return
    try:
        whole = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):  # changed before
        whole = b""
    if not whole or rng.random() < 0.3:
        flip(path, rng)
    else:
        packed = gzip.compress(text(whole, rng), 1)
        path.write_bytes(packed + (drawn(rng, [b"junk", packed, b"\0" * 999]) if rng.random() < 0.1 else b""))


# --- texts ----------------------------------------------------------------------------------------------

_TOKENS = (
    *(
        b"",
        b"-1",
        b"0",
        b"9" * 30,
        b"9" * 5000,
        b"1e400",
        b"nan",
        b"NaN",
        b"inf",
        b"1.5",
        b"0x10",
        b"1_0",
        b"\xb2",
    ),
    *(b"true", b"null", b"~", b"''", b'"', b'"a', b"\xff\xfe", b"\x00", "é".encode(), "\u202e".encode()),
    *(
        "\u0663".encode(),
        b"a" * 200_000,
        b"Unassigned",
        b"=1+1",
        b"\x1b[2J",
        b"&a [*a]",
        b"*a",
        b"!!python/x y",
    ),
    *(
        b"[" * 2000,
        b"{" * 2000,
        b"2001-99-99",
        b"- - -",
        b"\r",
        b"\x85",
        b"\x0c",
        "\u2028".encode(),
        b"%",
        b"#",
    ),
)


def text_file(path: Path, rng: Rng) -> None:
    """Change a text file."""
    path.write_bytes(text(path.read_bytes(), rng))


def text(data: bytes, rng: Rng) -> bytes:
    """Return a text with lines, words or bytes changed."""
    lines = data.split(b"\n")
    action, place = int(rng.integers(11)), int(rng.integers(len(lines)))
    if action <= 3:
        words = lines[place].replace(b"\t", b" \t ").replace(b",", b" , ").split(b" ")
        words[int(rng.integers(len(words)))] = drawn(rng, _TOKENS)
        lines[place] = b" ".join(words).replace(b" \t ", b"\t").replace(b" , ", b",")
    elif action == 4:
        del lines[place]
    elif action == 5:
        lines[place:place] = [lines[place]] * drawn(rng, [1, 2, 5000])
    elif action == 6:
        lines[place:] = []
    elif action == 7:
        other = int(rng.integers(len(lines)))
        lines[place], lines[other] = lines[other], lines[place]
    elif action == 8:
        return drawn(rng, [
            b"", b"\n", b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"),
            data.decode("utf-8", "replace").encode("utf-16"), data.replace(b"\t", b" "), data + b"\n" * 10**6,
            data.upper(), data * 50, b"\0" * 4096, data.replace(b",", b";"), data + b"x" * 5_000_000,
        ])  # fmt: skip
    else:
        spot = bytearray(data)
        for one in rng.integers(len(spot), size=int(rng.integers(1, 9))) if spot else ():
            spot[one] ^= int(rng.integers(1, 256))
        return bytes(spot)
    return b"\n".join(lines)


# --- JSON -----------------------------------------------------------------------------------------------

_JSON: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        2**63,
        "",
        "x" * 50_000,
        "a\ud800",
        "é\u202e",
        "../..",
        "/etc/passwd",
        [],
        {},
    ),
    *([None], [[]], {"a": 1}, "nan", "1", float("nan"), float("inf"), ["a", 1], "\x1b[2J"),
)
_RAW = (
    b"",
    b"{",
    b"[" * 100_000,
    b"null",
    b"1",
    b'"x"',
    b"[]",
    b"{}",
    b"NaN",
    b"9" * 6000,
    b'{"a":' * 90_000,
)


def json_file(path: Path, rng: Rng) -> None:
    """Change a JSON file: one value, or its text."""
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if document is None or rng.random() < 0.25:
        path.write_bytes(drawn(rng, _RAW) if rng.random() < 0.4 else text(data, rng))
    else:
        path.write_text(json.dumps(json_value(document, rng)))


def json_value(document: Any, rng: Rng) -> Any:
    """Return a document in which one value, at any depth, is another, gone, or there twice."""
    places = list(_places(document))
    if not places or rng.random() < 0.03:
        return drawn(rng, _JSON)
    node, key = drawn(rng, places)
    action = int(rng.integers(8))
    if action == 0:
        del node[key]
    elif action == 1:
        other = drawn(rng, [one[one_key] for one, one_key in _places(document)])
        node[key] = json.loads(json.dumps(other))
    elif action == 2 and isinstance(node[key], int):
        node[key] = node[key] + drawn(rng, [-1, 1, 10**9, 2**31, 2**63, -(10**12)])
    elif action == 3 and isinstance(node, dict):
        node[drawn(rng, ["more", "", "é", "x" * 5000, "..", "constructor"])] = node[key]
    else:
        node[key] = drawn(rng, _JSON)
    return document


def _places(node: Any) -> Any:
    for key in list(node if isinstance(node, dict) else range(len(node))):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])
