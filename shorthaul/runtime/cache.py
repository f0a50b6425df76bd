"""A content-addressed cache of compiled artifacts in the user's cache directory.

Layout: ``<directory>/<kind>/<key[:2]>/<key>/`` holds an entry's files and ``manifest.json`` (their sizes and SHA-256).
An entry is prepared under a temporary name beside its place and renamed, so that it is there as a whole or not at
all; when two processes make the same entry at once, the second finds it there and drops its own. Reading verifies
the checksums: a damaged entry is removed, reported once and made again. When the disk is full or the directory cannot
be written, the caller gets a temporary copy and one warning: caching never makes a program fail.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

DEFAULT_LIMIT = 2 * 2**30  # bytes
_MANIFEST = "manifest.json"
_FORMAT = 1  # raise it when the layout of entries changes


class CacheWarning(UserWarning):
    """The cache could not be used as intended; results are right, but something is compiled again."""


def default_directory() -> Path:
    """``$SHORTHAUL_CACHE_DIR``, else ``$XDG_CACHE_HOME/shorthaul``, else ``~/.cache/shorthaul``."""
    if named := os.environ.get("SHORTHAUL_CACHE_DIR"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shorthaul"


def make_key(*parts: str | bytes) -> str:
    """SHA-256 (hex) over the parts, each with its length, so that no two lists of parts collide by concatenation."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)


class Cache:
    """Entries of one ``kind`` (a folder name such as ``libraries``) in ``directory``.

    ``limit`` bounds the bytes of all kinds together; the least recently used entries are removed beyond it.
    """

    def __init__(self, kind: str, directory: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.kind = kind
        self.directory = directory if directory is not None else default_directory()
        self.limit = limit

    def __repr__(self) -> str:
        return f"Cache({self.kind!r}, {str(self.directory)!r})"

    def path(self, key: str) -> Path:
        """The folder where the entry of ``key`` is or would be."""
        return self.directory / self.kind / key[:2] / key

    def get(self, key: str) -> Path | None:
        """The folder of an entry whose files match their checksums; None where there is none (or no longer)."""
        folder = self.path(key)
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
        except FileNotFoundError:
            # Entries appear as a whole: a folder that is there and has no manifest was damaged.
            if folder.exists() and not (folder / _MANIFEST).exists():
                self._discard(folder, "it has no manifest")
            return None
        except (NotADirectoryError, PermissionError):
            return None  # no cache here that this user can read; put() says so
        except (OSError, ValueError) as error:
            self._discard(folder, str(error))
            return None
        try:
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format {manifest['format']} instead of {_FORMAT}")
            for name, (size, checksum) in manifest["files"].items():
                data = (folder / name).read_bytes()
                if len(data) != size or hashlib.sha256(data).hexdigest() != checksum:
                    raise ValueError(f"{name} does not match its checksum")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._discard(folder, str(error))
            return None
        with contextlib.suppress(OSError):  # a directory that cannot be written is still good to read
            os.utime(folder / _MANIFEST)  # the time of last use, for eviction
        return folder

    def put(self, key: str, files: Mapping[str, Path | bytes], *, evict: bool = True) -> Path:
        """Store files (name → path to copy, or content) and return the entry's folder. ``evict=False`` leaves the size
        bound to a later ``put`` (looking through the whole cache for each of many entries would take long).

        Where the cache cannot be written (disk full, no permission) the folder is a temporary one, removed at exit,
        and a :class:`CacheWarning` says so once. An OSError is raised only when not even that is possible.
        """
        folder = self.path(key)
        staging = folder.parent / f".{key[:16]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # native code: for this user alone
            staging.mkdir(parents=True)
            _write_entry(staging, files)
            try:
                os.rename(staging, folder)
            except OSError:
                if self.get(key) is None:  # not another process that was faster
                    raise
                shutil.rmtree(staging, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            _warn_once(
                f"the compile cache {self.directory} cannot be written ({error.strerror or error}); results are kept "
                "for this process only. Free some space or set SHORTHAUL_CACHE_DIR to another directory."
            )
            temporary = temporary_folder() / self.kind / key
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write_entry(temporary, files)
            return temporary
        except BaseException:  # an interrupt leaves nothing half-written behind
            shutil.rmtree(staging, ignore_errors=True)
            raise
        if evict:
            self._evict(keep=folder)
        return folder

    def get_json(self, key: str) -> object | None:
        """The value stored by :meth:`put_json`, or None."""
        folder = self.get(key)
        return None if folder is None else json.loads((folder / "value.json").read_bytes())

    def put_json(self, key: str, value: object) -> None:
        """Store a small value as JSON."""
        self.put(key, {"value.json": json.dumps(value).encode()})

    def _discard(self, folder: Path, reason: str) -> None:
        _warn_once(f"the compile cache entry {folder} is damaged ({reason}); it is removed and made again")
        _remove(folder)

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used entries of all kinds until the rest fits in 90 % of the limit."""
        entries: list[tuple[float, int, Path]] = []
        stale = time.time() - 24 * 3600
        for manifest in self.directory.glob(f"*/??/*/{_MANIFEST}"):
            try:
                sizes = sum(item.stat().st_size for item in manifest.parent.iterdir())
                entries.append((manifest.stat().st_mtime, sizes, manifest.parent))
            except OSError:
                continue  # removed by another process meanwhile
        for leftover in self.directory.glob("*/??/.*"):  # of a process that was killed
            try:
                if leftover.stat().st_mtime < stale:
                    shutil.rmtree(leftover, ignore_errors=True)
            except OSError:
                continue
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, folder in sorted(entries, key=lambda entry: entry[0]):
            if total <= 0.9 * self.limit:
                break
            if folder != keep:
                _remove(folder)
                total -= size


def _remove(folder: Path) -> None:
    """Remove an entry. Renamed first, so that another process sees it as a whole or not at all."""
    grave = folder.parent / f".removed-{uuid.uuid4().hex[:8]}"
    try:
        os.rename(folder, grave)
    except OSError:
        grave = folder
    shutil.rmtree(grave, ignore_errors=True)


def _write_entry(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    listed: dict[str, tuple[int, str]] = {}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (folder / name).write_bytes(data)
        listed[name] = (len(data), hashlib.sha256(data).hexdigest())
    (folder / _MANIFEST).write_text(json.dumps({"format": _FORMAT, "files": listed}))


@functools.lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="shorthaul-", ignore_cleanup_errors=True)


def temporary_folder() -> Path:
    """A folder of this process, removed at exit."""
    return Path(_temporary().name)
