"""Atomic writes of files and folders (temporary neighbour, fsync, rename), and checks of paths."""

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

from canal.core.errors import DISK_FULL, READ_ONLY, DataError, no_such_file

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def checked_path(path: Path) -> Path:
    """Return a path if it is valid on this system, whether or not it exists.

    Raises
    ------
    DataError
        If the path is invalid, such as a name of 5,000 characters.
    """
    try:
        path.exists()
    except OSError as error:
        raise DataError(f"{str(path)[:80]}...: {error.strerror}") from error
    return path


def kind_of(mode: int) -> str | None:
    """Return the kind of a special file or folder in words, by its mode; None for a regular file."""
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
        raise DataError(no_such_file(path)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be accessed ({error})") from error
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
    """Return a message about a full disk, missing permissions or an unusable path; None for other errors.

    For canal's temporary files the message names the folder, not the file.
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

    The temporary file is in the same folder, so the rename is atomic; it is flushed to disk first. Leftovers
    of killed runs in that folder are removed. Permissions follow the umask, restricted to those of the file
    that is replaced and of ``like``, the file that the content comes from.
    """
    mode = _allowed(path) & (_FILE if like is None else _allowed(like)) | _OWN_FILE
    with _neighbour(path, mode) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)


@contextmanager
def first_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path``, which must not exist.

    Of several processes that create the same file at once, on any machine, one succeeds.

    Raises
    ------
    FileExistsError
        If ``path`` exists by then; it is not changed.
    """
    with _neighbour(path, mode) as temporary:
        yield temporary
        _flush(temporary)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            temporary.replace(path)


@contextmanager
def _neighbour(path: Path, mode: int) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``, removed afterwards unless it was renamed."""
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

    Permissions and leftovers are as with `new_file`. The old and new folder are exchanged in one step, then
    the old one is removed: after a kill one of them is complete at ``path``. Where the system cannot exchange
    folders, a kill between two renames may leave neither.
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
    """Exchange two paths in one step; return whether the system and file system support it.

    Linux does (renameat2, RENAME_EXCHANGE), on its own file systems.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


_HERE, _EXCHANGE = -100, 2
"""Linux constants: AT_FDCWD (paths relative to the working directory) and RENAME_EXCHANGE."""


@contextmanager
def scratch_folder(purpose: str, place: Path | None = None) -> Iterator[Path]:
    """Yield a folder for temporary files, removed afterwards; leftovers of killed runs are removed first.

    The folder is in ``place``, by default the system's folder of temporary files.
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
    """Give a file that a library writes in this block the permissions of the umask.

    safetensors makes its files private, so that other users of a shared folder could not read its models.
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
    """Copy a file to a new path; the copy is readable only by users who may read the original."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, _FILE & source.stat().st_mode | _OWN_FILE))
    shutil.copyfile(source, target)


_FILE, _FOLDER, _OWN_FILE, _OWN_FOLDER = 0o666, 0o777, 0o600, 0o700
_TEMPORARY = re.compile(r"\..+\.canal-(?P<place>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}(\..*)?", re.DOTALL)
_LONGEST = 100
_swept: set[Path] = set()


def _temporary_name(path: Path, suffix: str = "") -> str:
    """Return the name of a hidden temporary file that identifies this machine and process."""
    name = path.name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    suffix = suffix if len(suffix.encode("utf-8", "surrogateescape")) <= _LONGEST else ""
    return f".{name}.canal-{_place()}-{os.getpid()}-{os.urandom(4).hex()}{suffix}"


@cache
def _place() -> str:
    """Return a digest of the machine and its container, within which process ids are unique."""
    try:
        numbers = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        numbers = 0
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove leftovers of killed runs from a folder, once in each process."""
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
    """Return whether a name is that of a temporary file of a process of this machine that has ended."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and match["place"] == _place() and not is_running(int(match["pid"]))


def is_running(process: int) -> bool:
    """Whether a process of this machine runs; one that was killed and nobody has waited for does not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or a system without /proc
        return True
    return state.rpartition(")")[2].split()[0] not in "ZX"


def _remove(path: Path) -> None:
    """Remove a file or folder, even with read-only folders inside; ignore what cannot be removed."""
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            Path(folder).chmod(_OWN_FOLDER)
    shutil.rmtree(path, ignore_errors=True)


def _allowed(path: Path) -> int:
    """Return the permissions of a file, or those common to a folder and its files; all if nothing exists."""
    try:
        rights = path.stat().st_mode & _FOLDER
        files = [entry for entry in os.scandir(path) if entry.is_file()] if path.is_dir() else []
        for file in files:
            rights &= file.stat().st_mode | 0o111
    except OSError:
        return _FOLDER
    return rights


def append_line(path: Path, line: str) -> None:
    """Append a line to a file atomically and flush it to disk; callers must hold a lock.

    After half a line that a kill left, the new line starts on a line of its own.

    Raises
    ------
    OSError
        If the line cannot be written; the file is unchanged.
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
