"""Writing that is whole or not there: temporary neighbours, then one rename."""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from canal.core.errors import DISK_FULL, READ_ONLY, DataError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def checked_path(path: Path) -> Path:
    """Return a path that the system can be asked about, whether or not anything is there.

    Raises
    ------
    DataError
        If the system knows no such names, as one of 5,000 characters.
    """
    try:
        path.exists()
    except OSError as error:
        raise DataError(f"{str(path)[:80]}...: {error.strerror}") from error
    return path


def kind_of(mode: int) -> str | None:
    """Return what a file that is no regular one is, by its mode; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for test, kind in _KINDS if test(mode)), "no regular file")


def regular_file(path: Path) -> Path:
    """Return ``path`` if it is, links of the file system followed, a regular file.

    Raises
    ------
    DataError
        If nothing is there, or a folder, named pipe, socket or device: opening one of those may never end.
    """
    try:
        kind = kind_of(checked_path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be looked at ({error})") from error
    if kind:
        raise DataError(f"{path} is {kind}: expected a file")
    return path


_UNUSABLE = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
)


def system_refusal(error: OSError) -> str | None:
    """Return what to tell a person whose system did not let canal read or write; None for any other error.

    Temporary files have names of canal's own making: their folder is named.
    """
    if error.errno in DISK_FULL:
        return f"{error}: make room, then run this again"
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    if path is not None and _TEMPORARY.fullmatch(path.name):
        if error.filename2 is not None:
            return f"cannot write {os.fsdecode(error.filename2)}: {error.strerror}"
        return f"cannot write into {path.parent.absolute()}: {error.strerror}"
    if error.errno not in (*READ_ONLY, *_UNUSABLE):
        return None
    return f"cannot read or write {path or 'a file'}: {error.strerror}"


@contextmanager
def new_file(path: Path, like: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The neighbour lies in the same folder, so the rename is atomic; it is flushed to disk first. What killed
    runs left in that folder is removed. The file may be read by whom the umask lets read it, but by nobody
    who may not read the file that it replaces, or ``like``, the file that its content is from.
    """
    mode = _allowed(path) & (_FILE if like is None else _allowed(like)) | _OWN_FILE
    with _neighbour(path, mode) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)


@contextmanager
def first_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path``, which nobody else made before.

    Of several processes that make the same file at once, on whichever machine, one makes it.

    Raises
    ------
    FileExistsError
        If something is there by then; it stays as it is.
    """
    with _neighbour(path, mode) as temporary:
        yield temporary
        _flush(temporary)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without a second name for a file
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            temporary.replace(path)


@contextmanager
def _neighbour(path: Path, mode: int) -> Iterator[Path]:
    """Yield an empty file beside ``path`` that is gone afterwards, unless it got another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.parent / _temporary_name(path, path.suffix)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode & _FILE))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, like: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` when the block ends without an error.

    Rights and leftovers are as with `new_file`. What is at ``path`` takes the place of the new folder in one
    step, and is removed there: a kill leaves the one or the other, whole. Where the system cannot exchange
    two folders, a kill in the moment between two renames may leave neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.parent / _temporary_name(path)
    temporary.mkdir(_FOLDER & (_FOLDER if like is None else _allowed(like)) | _OWN_FOLDER)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if not os.path.lexists(path):
            temporary.rename(path)
        elif not _exchange(temporary, path):
            aside = path.parent / _temporary_name(path)
            path.rename(aside)
            temporary.rename(path)
            _remove(aside)
    finally:
        if os.path.lexists(temporary):
            _remove(temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; return whether the system and its file system know how.

    Linux does (renameat2, RENAME_EXCHANGE), on its own file systems.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


_HERE, _EXCHANGE = -100, 2
"""What Linux calls paths that are not below an open folder (AT_FDCWD), and the exchange of two of them."""


@contextmanager
def scratch_folder(purpose: str, place: Path | None = None) -> Iterator[Path]:
    """Yield a folder for temporary files that is gone afterwards, as are those that killed runs left.

    It lies in ``place``, by default where the system has temporary files.
    """
    place = place or Path(tempfile.gettempdir())
    _sweep(place)
    folder = place / _temporary_name(Path(f"canal-{purpose}"))
    folder.mkdir(_OWN_FOLDER)
    try:
        yield folder
    finally:
        _remove(folder)


@contextmanager
def usual_rights(path: Path) -> Iterator[None]:
    """Let a file that a library makes in this block for its user alone be read by whom the umask lets.

    safetensors does so: nobody else could audit, or label with, the versions of a folder that is shared.
    """
    path.touch()
    mode = path.stat().st_mode & _FILE
    yield
    path.chmod(mode)


def unreadable(folder: Path) -> list[Path]:
    """Return the files and folders below a folder that this user may not read."""
    closed: list[Path] = []

    def note(error: OSError) -> None:
        closed.append(Path(error.filename))

    for place, folders, files in os.walk(folder, onerror=note):
        paths = [Path(place, name) for name in (*folders, *files)]
        closed += [path for path in paths if not (path.is_symlink() or os.access(path, os.R_OK))]
    return sorted(set(closed))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to where none is; nobody may read the copy who may not read the original."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, _FILE & source.stat().st_mode | _OWN_FILE))
    shutil.copyfile(source, target)


_FILE, _FOLDER, _OWN_FILE, _OWN_FOLDER = 0o666, 0o777, 0o600, 0o700
_TEMPORARY = re.compile(r"\..+\.canal-(?P<place>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}(\..*)?", re.DOTALL)
_LONGEST = 100
_swept: set[Path] = set()


def _temporary_name(path: Path, suffix: str = "") -> str:
    """Return a hidden name that tells whose it is: this machine's, this process's."""
    name = path.name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    suffix = suffix if len(suffix.encode("utf-8", "surrogateescape")) <= _LONGEST else ""
    return f".{name}.canal-{_place()}-{os.getpid()}-{os.urandom(4).hex()}{suffix}"


@cache
def _place() -> str:
    """Return a digest of where process numbers count: the machine, and its container."""
    try:
        numbers = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        numbers = 0
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove what runs of canal that were killed left in a folder; looked for once by each process."""
    if folder in _swept:
        return
    _swept.add(folder)
    try:
        left = [Path(entry.path) for entry in os.scandir(folder) if _left_over(entry.name)]
    except OSError:
        return
    for path in left:
        _remove(path)


def _left_over(name: str) -> bool:
    """Return whether a name is that of a temporary file of a process of this place that is no more."""
    match = _TEMPORARY.fullmatch(name)
    if match is None or match["place"] != _place():
        return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _remove(path: Path) -> None:
    """Remove a file or folder, also where folders in it may not be written; what cannot be removed stays."""
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            Path(folder).chmod(_OWN_FOLDER)
    shutil.rmtree(path, ignore_errors=True)


def _allowed(path: Path) -> int:
    """Return the rights that a file gives, or a folder and the files in it; all where nothing is there."""
    try:
        rights = path.stat().st_mode & _FOLDER
        files = [entry for entry in os.scandir(path) if entry.is_file()] if path.is_dir() else []
        for file in files:
            rights &= file.stat().st_mode | 0o111
    except OSError:
        return _FOLDER
    return rights


def append_line(path: Path, line: str) -> None:
    """Add a line at the end of a file, whole and on disk, or not at all; callers take turns by a lock.

    Where a kill left half a line, the new one begins behind it.

    Raises
    ------
    OSError
        If it cannot be written; the file is as it was.
    """
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(handle).st_size
        torn = before > 0 and os.pread(handle, 1, before - 1) != b"\n"
        try:
            left = memoryview((("\n" if torn else "") + line + "\n").encode())
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)
    if new:
        _sync_folder(path.parent)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as readable JSON with sorted keys, atomically; NaN is an error."""
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    with new_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the JSON document in ``path``; raises `ValueError` where it is none, or nested too deep."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return the JSON document in ``text``; raises `ValueError` where it is none, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
