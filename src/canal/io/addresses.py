"""Files and folders in an object store, by address (``s3://bucket/cells.h5ad``), through fsspec.

The account is the one of the environment, as boto3 takes it (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
``AWS_ENDPOINT_URL`` ...): an address holds none, so that plans and records hold none. What a store refuses is
one sentence, of codes alone (`canal.core.store_refusals`). fsspec and the store's own package are imported
with the first address, so that work on local files needs neither.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, BinaryIO, cast

from canal.core.errors import CanalError, ConfigError, DataError, has_password, shown_address
from canal.core.packages import require
from canal.core.store_refusals import causes_of, object_store_refusal

_STORES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that speaks it."""
_SETTINGS = ("AWS_", "FSSPEC_", "GOOGLE_", "AZURE_")
"""What the names of environment variables begin with that choose an account."""
_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_WILDCARDS = re.compile(r"[*?\[]")
_VAGUE = re.compile(r"\((?:400|403|Bad Request|Forbidden)\) when calling")
_BLOCK, _BLOCKS = 1 << 22, 32
"""Bytes of a request that reads in place, and how many of these are kept: 128 MiB."""
_SMALL, _AT_ONCE = 1 << 20, 16
"""Bytes of an object that is fetched whole, as a chunk of zarr is, and how many of these at once."""
_READING = BoundedSemaphore(8)
"""Reads for digests at once: each holds up to 16 MiB, and each of many inputs has a thread for its digest."""


class StoreError(DataError):
    """An object store refused, does not answer, or has no such object; the message says which, in words."""


@dataclass(frozen=True)
class Stored:
    """An object: its name below an address (``""``: the address itself), size, time of change and ETag.

    The time is in nanoseconds, of whole seconds: a store tells fractions in some answers and not in others.
    """

    name: str
    size: int
    changed: int
    etag: str


@dataclass(frozen=True, order=True)
class Address:
    """A file or a folder in an object store.

    Attributes
    ----------
    text : str
        ``protocol://bucket/key``, without a slash at its end.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.text}/{name}")

    @property
    def protocol(self) -> str:
        """The part before ``://``."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """The part behind the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's end from its last dot on, as of a `pathlib.Path`."""
        return Path(self.name).suffix

    @property
    def parent(self) -> Address:
        """The folder in which it lies."""
        return Address(self.text.rpartition("/")[0])

    @property
    def key(self) -> str:
        """Bucket and key, as fsspec names an object."""
        return self.text.partition("://")[2]

    def as_path(self) -> Path:
        """Return what stands for the address in messages of readers: a path that only shows it."""
        return _Shown(self.text)

    def objects(self) -> list[Stored]:
        """Return the object at this address, or all below it, by name.

        Raises
        ------
        StoreError
            If nothing is there, or the store refuses.
        """
        with self._asking():
            found = self._listed()
        if not found:
            told = self._refusal(error) if (error := self._plainer()) else None
            raise StoreError(f"{self}: {told or 'no such object, and none lies below it'}")
        return found

    def _listed(self) -> list[Stored]:
        store = self._store()
        with suppress(FileNotFoundError):
            about = store.info(self.key)
            if about["type"] == "file":
                return [_stored("", about)]
        below = store.find(self.key, detail=True)
        start = len(self.key) + 1
        files = {name: about for name, about in below.items() if about["type"] == "file"}
        return [_stored(name[start:], about) for name, about in sorted(files.items()) if len(name) > start]

    def names(self) -> list[str]:
        """Return the names of the objects below this folder; none where there is no such folder."""
        with self._asking(), suppress(FileNotFoundError):
            found = sorted(self._store().find(self.key))
            return [one[len(self.key) + 1 :] for one in found if one.startswith(f"{self.key}/")]
        return []

    def is_file(self) -> bool:
        """Whether an object is at this address."""
        with self._asking(), suppress(FileNotFoundError):
            return str(self._store().info(self.key)["type"]) == "file"
        return False

    def matching(self) -> list[Address]:
        """Return the addresses that a pattern (``*``, ``?``, ``[...]``) stands for, by name.

        Raises
        ------
        StoreError
            If there is none.
        """
        if _WILDCARDS.search(self.key) is None:
            return [self]
        with self._asking():
            found = sorted(self._store().glob(self.key))
        if not found and self.is_file():  # a name with such a letter in it
            return [self]
        if not found:
            told = self._refusal(error) if (error := self._plainer()) else None
            raise StoreError(f"{self}: {told or 'no object has such an address'}")
        return [Address(f"{self.protocol}://{one}") for one in found]

    def read(self, start: int | None = None, stop: int | None = None) -> bytes:
        """Return the bytes of an object, or some of them; a negative start counts from the end.

        Raises
        ------
        FileNotFoundError
            If nothing is there.
        """
        with self._asking():
            return cast("bytes", self._store().cat_file(self.key, start=start, end=stop))

    def read_below(self, names: Sequence[str], start: int | None = None) -> list[bytes]:
        """Return the bytes of objects below a folder, as `read` does; many are asked for at once."""
        keys = [f"{self.key}/{name}" for name in names]
        with self._asking():
            found = self._store().cat_ranges(keys, [start] * len(keys), [None] * len(keys), on_error="raise")
        return list(found)

    def digests(self, given_up: Callable[[], bool] = lambda: False) -> dict[str, str]:
        """Return the SHA-256 of the object, or of all below it, by name; see `canal.core.digests`."""
        found: dict[str, str] = {}
        objects = self.objects()
        small = [one.name for one in objects if one.name and one.size <= _SMALL]
        for start in range(0, 0 if given_up() else len(small), _AT_ONCE):
            names = small[start : start + _AT_ONCE]
            with _READING:
                contents = self.read_below(names)
            found |= {
                name: hashlib.sha256(content).hexdigest()
                for name, content in zip(names, contents, strict=True)
            }
        for one in (one for one in objects if one.name not in found):
            digest, place = hashlib.sha256(), self / one.name if one.name else self
            for start in range(0, one.size, 2 * _BLOCK):
                if given_up():
                    break
                with _READING:
                    digest.update(place.read(start, min(start + 2 * _BLOCK, one.size)))
            found[one.name] = digest.hexdigest()
        return found

    def open(self) -> BinaryIO:
        """Return an object as a file that fetches what is read, in blocks, and fails once it has changed."""
        with self._asking():
            kept = {"maxblocks": _BLOCKS}
            store = self._store()
            file = store.open(self.key, block_size=_BLOCK, cache_type="blockcache", cache_options=kept)
            return cast("BinaryIO", file)

    def zarr(self) -> Any:
        """Return what lies below this address as a store of zarr, which reads what it is asked for."""
        from zarr.storage import FsspecStore

        options = self._store().storage_options | {"asynchronous": True, "skip_instance_cache": True}
        with self._asking():
            return FsspecStore.from_url(self.text, storage_options=options, read_only=True)

    def fetch(self, folder: Path, names: Sequence[str] | None = None) -> Path:
        """Copy the object, or those below (some of them by name), into a folder; return the copy's path."""
        copy = folder / self.name
        for name in [one.name for one in self.objects()] if names is None else names:
            target = copy / name if name else copy
            if not target.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{self}: an object is called {name!r}, which leads out of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._asking():
                self._store().get_file(f"{self.key}/{name}" if name else self.key, str(target))
        return copy

    def put(self, file: Path, only_first: bool = False) -> None:
        """Write an object, whole or not at all.

        Raises
        ------
        FileExistsError
            If it is there and ``only_first`` says that it must not be; stores without conditional writes
            replace it.
        StoreError
            If the store refuses.
        """
        store, mode = self._store(), "create" if only_first else "overwrite"
        with self._asking():
            try:
                store.put_file(str(file), self.key, mode=mode)
            except Exception as error:
                if not only_first:
                    raise
                if _says(error, "PreconditionFailed", "ConditionalRequestConflict"):
                    raise FileExistsError(str(self)) from error
                if not (_says(error, "NotImplemented") or isinstance(error, TypeError)):
                    raise
                store.put_file(str(file), self.key)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the store refuses in this block, whatever a reader made of it, into a `StoreError`."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            if (told := self._refusal(error)) is None:
                raise
            raise StoreError(f"{self}: {told}") from error

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the store refuses of one question into a `StoreError`; answers stay as they are.

        `FileNotFoundError` and `FileExistsError` are answers.
        """
        try:
            yield
        except (CanalError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if not _says(error, "NoSuchBucket"):
                raise
            raise StoreError(f"{self}: {self._refusal(error)}") from error
        except Exception as error:
            told = self._refusal(error) or f"the object store refused ({type(error).__name__})"
            raise StoreError(f"{self}: {told}") from error

    def _refusal(self, error: BaseException) -> str | None:
        if any(type(one).__name__ == "FileExpired" for one in causes_of(error)):
            return (
                "it changed while it was read, so labels could not be assigned to its cells: wait until the "
                "program that writes it is done, then try again"
            )
        if any(_VAGUE.search(str(one)) for one in causes_of(error)):
            error = self._plainer() or error  # the answer to HEAD has no text that says why
        if isinstance(error, ValueError) and "endpoint" in str(error):
            return "AWS_ENDPOINT_URL is no address such as https://objects.lab"
        return object_store_refusal(error, "AWS_ENDPOINT_URL", f"{self.protocol}://{self.key.split('/')[0]}")

    def _plainer(self) -> Exception | None:
        """Return the error of a request whose answer says why an account is refused; None without one."""
        if self.protocol != "s3":
            return None
        try:
            self._store().call_s3("list_objects_v2", Bucket=self.key.split("/")[0], MaxKeys=1)
        except Exception as error:
            return error
        return None

    def _store(self) -> Any:
        chosen = sorted(one for one in os.environ.items() if one[0].startswith(_SETTINGS))
        return _store_of(self.protocol, os.getpid(), tuple(chosen))


_HERE = type(Path())


class _Shown(_HERE):  # type: ignore[misc, valid-type]
    """A path that shows an address: readers name the file they read by its path."""

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/", r"\1://", super().__str__())


def address_of(text: str) -> Address | None:
    """Return what a person wrote as an address; None for a path.

    Raises
    ------
    DataError
        If it holds an account, names no bucket, or is of no protocol that canal knows.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    protocol, key = found[1].lower(), found[2].rstrip("/")
    if has_password(text) or "@" in key.split("/")[0]:
        raise DataError(
            f"{shown_address(text)}: addresses of cells and labels are on record, so they hold no account: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and leave it out there"
        )
    if protocol not in _STORES:
        raise DataError(
            f"{text}: canal reads and writes {', '.join(f'{one}://' for one in _STORES)} (S3 with "
            'pip install "canal-cells[s3]") and paths: fetch the file first, and give its path'
        )
    if not key or key.startswith("/"):
        raise DataError(f"{text}: expected an address such as {protocol}://bucket/cells.h5ad")
    return Address(f"{protocol}://{key}")


def has_wildcards(address: Address) -> bool:
    """Whether an address is a pattern, which may stand for several."""
    return _WILDCARDS.search(address.key) is not None


@lru_cache(maxsize=4)
def _store_of(protocol: str, *_: object) -> Any:
    """Return fsspec's file system of a protocol, for a process and its account."""
    package = _STORES[protocol]
    if protocol == "s3":
        require(package, f"an address {protocol}://")
    elif find_spec(package) is None or find_spec("fsspec") is None:
        raise ConfigError(f"an address {protocol}:// needs {package}: pip install {package}")
    fsspec = import_module("fsspec")
    # What another process writes has to be seen, so nothing that was listed is kept.
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol == "s3":
        options["config_kwargs"] = {"retries": {"max_attempts": 2, "mode": "standard"}}
    return fsspec.filesystem(protocol, **options)


def _stored(name: str, about: dict[str, Any]) -> Stored:
    """Return what a store says of an object; the names of it are S3's, Google's or Azure's."""
    times = (about.get(one) for one in ("LastModified", "last_modified", "mtime", "updated"))
    time = next((one for one in times if one), None)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    etags = (about.get(one) for one in ("ETag", "etag", "md5Hash"))
    etag = next((str(one).strip('"') for one in etags if one), "")
    return Stored(name, int(about["size"]), 0 if time is None else int(time.timestamp()) * 10**9, etag)


def _says(error: BaseException, *codes: str) -> bool:
    """Whether a store answered with one of these codes."""
    texts = [str(one) for one in causes_of(error)]
    return any(f"({code})" in text for code in codes for text in texts)
