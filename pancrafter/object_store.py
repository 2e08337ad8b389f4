"""Where a catalog lies: a folder or an S3 bucket behind the same few operations, each of them atomic."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from pancrafter.durable import flush
from pancrafter.errors import CatalogUnavailableError, SinkError
from pancrafter.item import multihash_of
from pancrafter.processes import lease_owner

_RANGE = 32 * 2**20
_TRIES = 50
_LONGEST_WAIT_S = 2.0


@dataclass(frozen=True)
class Tagged:
    """A document as it was read, and what tells its version from others where the storage knows that."""

    data: bytes | None
    etag: str | None = None


class ObjectStore(ABC):
    """The few operations the catalog needs; names are relative to its root.

    Failures are ``SinkError``, or ``CatalogUnavailableError`` where a server gives no answer and may do so later.
    """

    @abstractmethod
    def address(self, name: str) -> str:
        """Where a file lies for readers: path or URL."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A whole file; None if there is none."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    @abstractmethod
    def changed(self, name: str) -> datetime | None:
        """When a file was written last; None if there is none."""

    @abstractmethod
    def multihash(self, name: str, size: int) -> str:
        """Checksum of a file of this ``size`` in bytes."""

    @abstractmethod
    def write(self, name: str, data: bytes, media_type: str) -> None:
        """Write a small file: readers see the old or the new one, never a part."""

    @abstractmethod
    def put(self, source: Path, name: str, media_type: str, *, rights: int = 0o666) -> None:
        """Copy a local file to its place, as ``write`` does; ``rights`` are for a new file in a folder."""

    @abstractmethod
    def get(self, name: str, target: Path) -> None:
        """Copy a file from its place to a local one."""

    def read_tagged(self, name: str) -> Tagged:
        """To be handed to ``update``, which need not read again then."""
        return Tagged(self.read(name))

    @abstractmethod
    def update(
        self, name: str, change: Callable[[bytes | None], bytes], media_type: str, known: Tagged | None = None
    ) -> None:
        """Change a document from what it is now; ``change`` is asked again if others changed it in the meantime."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all files below a folder, by name."""

    def list_names(self, folder: str) -> list[str]:
        """Names of all files below a folder, sorted."""
        return sorted(self.sizes(folder))

    def list_drafts(self) -> list[tuple[str, datetime]]:
        """Names that readers never look at, of files that are being written, and when they were changed last."""
        return []

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None


class _Folder(ObjectStore):
    """A local folder: files are written beside their place, flushed and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def address(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        with self._named(name):
            try:
                return (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, name: str) -> int | None:
        with self._named(name):
            try:
                return (self.root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def changed(self, name: str) -> datetime | None:
        with self._named(name):
            try:
                return datetime.fromtimestamp((self.root / name).stat().st_mtime, UTC)
            except FileNotFoundError:
                return None

    def multihash(self, name: str, size: int) -> str:  # noqa: ARG002 (a file ends by itself)
        with self._named(name):
            return multihash_of(self.root / name)

    def write(self, name: str, data: bytes, media_type: str) -> None:  # noqa: ARG002 (files have no media type)
        def fill(draft: Path) -> None:
            draft.write_bytes(data)

        self._place(name, fill)

    def put(self, source: Path, name: str, media_type: str, *, rights: int = 0o666) -> None:  # noqa: ARG002
        def fill(draft: Path) -> None:
            draft.touch(rights)
            shutil.copyfile(source, draft)

        self._place(name, fill)

    def get(self, name: str, target: Path) -> None:
        with self._named(name):
            shutil.copyfile(self.root / name, target)

    def update(
        self,
        name: str,
        change: Callable[[bytes | None], bytes],
        media_type: str,
        known: Tagged | None = None,  # noqa: ARG002 (only what is read under the lock is true)
    ) -> None:
        with self._locked():
            old = self.read(name)
            new = change(old)
            if new != old:
                self.write(name, new, media_type)

    def delete(self, name: str) -> None:
        with self._named(name):
            (self.root / name).unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        for path in (self.root / folder).rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and not path.name.startswith(".draft-"):
                    found[path.relative_to(self.root).as_posix()] = status.st_size
        return found

    def list_drafts(self) -> list[tuple[str, datetime]]:
        found = []
        for kind in ("draft", "probe"):
            for path in self.root.rglob(f".{kind}-*~*~*~*"):
                with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                    found.append((path.relative_to(self.root).as_posix(), changed))
        return sorted(found)

    def _place(self, name: str, fill: Callable[[Path], None]) -> None:
        target = self.root / name
        draft = target.with_name(f".draft-{signature()}")
        with self._named(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                fill(draft)
                flush(draft)
                draft.replace(target)
                flush(target.parent)
            finally:
                draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among threads and processes of hosts that share the folder; freed by the system on any death."""
        with self._named(".lock"):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            advice = {
                errno.ENOSPC: "the disk is full: free some space",
                errno.EDQUOT: "the quota is used up: free some space",
                errno.EACCES: "no permission: change it or choose another place",
                errno.EPERM: "no permission: change it or choose another place",
                errno.EROFS: "the file system is read-only: choose another place",
            }.get(err.errno or 0, "check the path and the disk")
            raise SinkError(f"{self.address(name)}: {err.strerror or err}; {advice}") from err


class _Bucket(ObjectStore):
    """An object store through fsspec: an object appears whole or not at all, shared ones are written conditionally."""

    def __init__(self, filesystem: Any, root: str) -> None:  # Any: fsspec ships no types
        self.filesystem = filesystem
        self.root = root.rstrip("/")

    def address(self, name: str) -> str:
        return f"s3://{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        return self.read_tagged(name).data

    def read_tagged(self, name: str) -> Tagged:
        """One request. ``cat_file`` would ask for the size first, and does not tell the ETag."""
        bucket, _, key = self._path(name).partition("/")
        with self._named(name):
            try:
                answer = self.filesystem.call_s3("get_object", Bucket=bucket, Key=key)
                data = fsspec.asyn.sync(self.filesystem.loop, answer["Body"].read)
            except FileNotFoundError:
                return Tagged(None)
        # Ceph up to 16 compares without the quotes that belong to an ETag; others take it either way.
        return Tagged(bytes(data), answer["ETag"].strip('"'))

    def size(self, name: str) -> int | None:
        with self._named(name):
            try:
                return int(self.filesystem.info(self._path(name), refresh=True)["size"])
            except FileNotFoundError:
                return None

    def changed(self, name: str) -> datetime | None:
        with self._named(name):
            try:
                found: datetime = self.filesystem.info(self._path(name), refresh=True)["LastModified"]
            except FileNotFoundError:
                return None
        return found

    def multihash(self, name: str, size: int) -> str:
        """In ranges, each tried again by itself; ``open`` would ask for the size first."""
        digest, path = hashlib.sha256(), self._path(name)
        with self._named(name):
            for start in range(0, size, _RANGE):
                digest.update(self.filesystem.cat_file(path, start=start, end=min(size, start + _RANGE)))
        return "1220" + digest.hexdigest()

    def write(self, name: str, data: bytes, media_type: str) -> None:
        with self._named(name):
            self.filesystem.pipe_file(self._path(name), data, ContentType=media_type)

    def put(self, source: Path, name: str, media_type: str, *, rights: int = 0o666) -> None:  # noqa: ARG002
        with self._named(name):
            self.filesystem.put_file(str(source), self._path(name), ContentType=media_type)

    def get(self, name: str, target: Path) -> None:
        with self._named(name):
            self.filesystem.get_file(self._path(name), str(target))

    def update(
        self, name: str, change: Callable[[bytes | None], bytes], media_type: str, known: Tagged | None = None
    ) -> None:
        """Compare-and-swap on the object's ETag (If-Match, If-None-Match), tried again while others are faster."""
        bucket, _, key = self._path(name).partition("/")
        for attempt in range(_TRIES):
            if attempt:  # a random pause, growing: many publishers would overtake each other for ever
                time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.01 * 2**attempt)))  # noqa: S311
            old = known if known is not None and not attempt else self.read_tagged(name)
            new = change(old.data)
            if new == old.data:
                return
            condition = {"IfNoneMatch": "*"} if old.etag is None else {"IfMatch": old.etag}
            with self._named(name):
                try:
                    self.filesystem.call_s3(
                        "put_object", Bucket=bucket, Key=key, Body=new, ContentType=media_type, **condition
                    )
                except OSError as err:
                    if _status(err) not in {409, 412}:  # somebody is writing, or has written
                        raise
                else:
                    self.filesystem.invalidate_cache(self._path(name))
                    return
        raise SinkError(f"{self.address(name)}: {_TRIES} writes in a row were overtaken by others; publish again")

    def delete(self, name: str) -> None:
        with self._named(name):
            self.filesystem.rm_file(self._path(name))

    def sizes(self, folder: str) -> dict[str, int]:
        with self._named(folder):
            try:
                found = self.filesystem.find(self._path(folder), refresh=True, detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(f"{self.root}/"): int(info["size"]) for path, info in found.items()}

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError
        from botocore.exceptions import ConnectionError as NoConnectionError
        from s3fs.core import S3_RETRYABLE_ERRORS

        try:
            yield
        except (OSError, ValueError, BotoCoreError, *S3_RETRYABLE_ERRORS) as err:
            said = f"{self.address(name)}: {type(err).__name__}: {err}"
            status = _status(err)
            if isinstance(err, (NoConnectionError, *S3_RETRYABLE_ERRORS)) or status >= 500 or status == 429:
                raise CatalogUnavailableError(f"{said}; is the object store up? It is tried again") from err
            raise SinkError(f"{said}; check bucket, credentials and endpoint") from err


def open_store(uri: str) -> ObjectStore:
    """The store at a folder or s3://bucket/prefix.

    Raises:
        SinkError: There is no such file system, or its files cannot be replaced atomically.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as err:  # some file systems connect at once
        raise SinkError(f"{uri}: not a usable sink ({err}); give a folder or s3://bucket/prefix") from err
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    if "file" in protocols:
        return _Folder(Path(path).absolute())
    if "s3" in protocols:
        return _Bucket(filesystem, path)
    raise SinkError(f"{uri}: storage {sorted(protocols)} cannot switch atomically here; give a folder or s3://…")


def _status(err: BaseException | None) -> int:
    """Status of an S3 answer, however s3fs has wrapped it; 0 if there was none."""
    while err is not None:
        response = getattr(err, "response", None) or {}
        if "ResponseMetadata" in response:
            return int(response["ResponseMetadata"].get("HTTPStatusCode", 0))
        err = err.__cause__
    return 0


def signature() -> str:
    """A fresh name that tells which process made it, so that what a dead one leaves behind can be removed."""
    return f"{lease_owner().replace('/', '~')}~{uuid.uuid4().hex[:12]}"
