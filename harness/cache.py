# SPDX-License-Identifier: MIT
"""The content-addressed store on the host: downloads, builds, images and templates, each made once.

An entry is a directory `ROOT/KIND/KEY`. It is made in a hidden directory beside its final place, under a
lock of its own, and put in place by one rename, so that nobody ever sees half an entry: not after Ctrl-C, a
full disk or kill -9. Entries are read-only once made; `meta.json` in each records what was put there, so
that damage is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError, KernrigError

Say = Callable[[str], None]

META = "meta.json"
META_FORMAT = 1

# A template's memory file is not hashed: reading half a gigabyte costs more than the check is worth.
HASHED_UP_TO_BYTES = 128 * 1024 * 1024
DIGEST_HEX_LENGTH = 24


@dataclass(frozen=True)
class Entry:
    """One finished entry: `size_bytes` is what it occupies on disk, `mtime` its last use (Unix seconds)."""

    kind: str
    key: str
    size_bytes: int
    mtime: float
    path: Path


class Cache:
    """The store below `root`. Safe to use from any number of processes and threads at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> Cache:
        """The user's store: `$KERNRIG_CACHE`, or `kernrig` in the user's cache directory (XDG)."""
        if configured := os.environ.get("KERNRIG_CACHE"):
            return cls(Path(configured).expanduser().absolute())
        import platformdirs

        return cls(Path(platformdirs.user_cache_dir("kernrig", appauthor=False)))

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's directory, or None when there is none or it is damaged (`build` then replaces it)."""
        path = self._path(kind, key)
        if self.damage(kind, key) is not None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def build(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], None],
        *,
        say: Say | None = None,
        wait_s: float = 3600.0,
    ) -> Path:
        """The entry's directory, made by `make(empty directory)` when it is missing or damaged.

        Only one process makes an entry; others wait for it, at most `wait_s` seconds, and `say` is told so.
        Whatever `make` raises is passed on and leaves nothing behind; a full disk becomes a HostError that
        says so.
        """
        if (found := self.get(kind, key)) is not None:
            return found
        with self._lock(kind, key, say=say, wait_s=wait_s):
            damage = self.damage(kind, key)
            if damage is None:
                return self._path(kind, key)
            if self._path(kind, key).exists():
                if say is not None:
                    say(f"cache entry {kind}/{key} is damaged ({damage}): making it again")
                self._discard(kind, key)
            return self._make(kind, key, make)

    def entries(self, only: str | None = None) -> list[Entry]:
        """All finished entries (of one kind), by kind and key; the kind `state` holds what is updated in place."""
        found = []
        for kind in _visible(self.root):
            if only is not None and kind.name != only:
                continue
            for path in _visible(kind):
                with contextlib.suppress(FileNotFoundError):
                    found.append(Entry(kind.name, path.name, _disk_usage(path), path.stat().st_mtime, path))
        return found

    def remove(self, kind: str, key: str) -> None:
        """Take the entry out, if it is there. Processes that have its files open keep them."""
        with self._lock(kind, key, say=None, wait_s=60.0):
            self._discard(kind, key)

    def prune(
        self, kind: str, *, keep: int, idle_s: float, which: Callable[[Path], bool] = lambda _: True
    ) -> None:
        """Remove the entries of a kind (of those that `which` takes) that nobody used for so long, but for the `keep`
        that were used last. What another process works on stays."""
        found = []
        for path in _visible(self.root / kind):
            with contextlib.suppress(FileNotFoundError):
                if which(path):
                    found.append((path.stat().st_mtime, path.name))
        old = time.time() - idle_s
        for mtime, key in sorted(found, reverse=True)[keep:]:
            if mtime < old:
                with contextlib.suppress(KernrigError), self._lock(kind, key, say=None, wait_s=0):
                    self._discard(kind, key)

    def sweep(self) -> None:
        """Delete what makers that were killed left behind; those still at work are not disturbed."""
        try:
            kinds = _visible(self.root)
        except OSError as error:
            raise _unusable(self.root, error) from error
        for kind in kinds:
            for path in sorted(kind.iterdir()):
                if not path.name.startswith((".new-", ".old-")):
                    continue
                key = path.name[len(".new-") :].rpartition("-")[0]
                with (
                    contextlib.suppress(KernrigError, ValueError),
                    self._lock(kind.name, key, say=None, wait_s=0),
                ):
                    _delete(path)

    def damage(self, kind: str, key: str, *, thorough: bool = False) -> str | None:
        """What is wrong with the entry ("it is missing" included), or None when it is as it was made.

        A file counts as unchanged when its size and modification time are; when only the time differs, or
        with `thorough`, its content is compared with the recorded SHA-256.
        """
        path = self._path(kind, key)
        base = str(path)
        try:
            meta = json.loads((path / META).read_bytes())
            if meta["format"] != META_FORMAT:
                return f"{META} has format {meta['format']}"
            files: dict[str, tuple[int, int, str | None]] = meta["files"]
            links: dict[str, str] = meta["links"]
            for name, (size, mtime_ns, sha256) in files.items():
                if (
                    fault := _file_damage(f"{base}/{name}", size, mtime_ns, sha256, thorough=thorough)
                ) is not None:
                    return f"{name} {fault}"
            for name, target in links.items():
                if not (path / name).is_symlink() or str((path / name).readlink()) != target:
                    return f"{name} no longer points to {target}"
        except FileNotFoundError:
            return f"it has no {META}" if path.exists() else "it is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{META} cannot be used: {type(error).__name__}: {error}"
        return None

    @contextlib.contextmanager
    def state(self, name: str, *, say: Say | None = None, wait_s: float = 3600.0) -> Iterator[Path]:
        """The directory `ROOT/state/NAME`, held exclusively: for what is updated in place, such as package
        lists. It has no `meta.json`, and whoever keeps things in it must survive an interrupted update."""
        path = self._path("state", name)
        with self._lock("state", name, say=say, wait_s=wait_s):
            try:
                path.mkdir(parents=True, exist_ok=True)
                os.utime(path)
            except OSError as error:
                raise _unusable(self.root, error) from error
            try:
                yield path
            except Exception as error:
                if isinstance(error, HostError) or not _is_disk_full(error, self.root):
                    raise
                raise _full(self.root, f"state/{name} could not be brought up to date", error) from error

    def _path(self, kind: str, key: str) -> Path:
        for part in (kind, key):
            if not part or part.startswith(".") or "/" in part or "\0" in part:
                raise ValueError(f"not usable as a cache kind or key: {part!r}")
        return self.root / kind / key

    @contextlib.contextmanager
    def _lock(self, kind: str, key: str, *, say: Say | None, wait_s: float) -> Iterator[None]:
        # Imported here: most runs find everything made and need no lock.
        from filelock import FileLock, Timeout

        path = self.root / ".locks" / f"{kind}.{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            deadline = time.monotonic() + wait_s
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if say is not None:
                    say(f"waiting for another process that is working on {kind}/{key}")
                lock.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=0.02)
        except Timeout as error:
            raise KernrigError(
                f"waited {wait_s:.0f} s for another process that is working on {kind}/{key} in {self.root}",
                hint=f"find it with `fuser {path}`; end it if it hangs",
            ) from error
        except OSError as error:
            raise _unusable(self.root, error) from error
        try:
            yield
        finally:
            lock.release()

    def _make(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        final = self._path(kind, key)
        # Left by a process that was killed; the lock says that nobody is at work there now.
        _sweep(final.parent, f".new-{key}-")
        _sweep(final.parent, f".old-{key}-")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(prefix=f".new-{key}-", dir=final.parent))
        except OSError as error:
            raise _unusable(self.root, error) from error
        try:
            new.chmod(0o755)
            make(new)
            (new / META).write_text(json.dumps(_describe(new)))
            new.rename(final)
        except Exception as error:
            if _is_disk_full(error, self.root):
                raise _full(self.root, f"{kind}/{key} could not be made", error) from error
            raise
        finally:
            _delete(new)
        return final

    def _discard(self, kind: str, key: str) -> None:
        """Take the entry away by a rename, so that it is never seen half deleted; the lock is held."""
        path = self._path(kind, key)
        if not path.exists():
            return
        if not path.is_dir():
            path.unlink()
            return
        old = Path(tempfile.mkdtemp(prefix=f".old-{key}-", dir=path.parent))
        try:
            path.rename(old)
        finally:
            _delete(old)


def digest(*parts: str | bytes | Path) -> str:
    """A short hexadecimal hash of all parts in order. A Path stands for its file's content, or for a
    directory's whole tree (relative names, executable bits, link targets and contents)."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(b"p" + (_tree_digest(part) if part.is_dir() else _sha256(part).encode()))
        else:
            data = part.encode() if isinstance(part, str) else part
            total.update(b"d%d:" % len(data) + data)
    return total.hexdigest()[:DIGEST_HEX_LENGTH]


def _tree_digest(root: Path) -> bytes:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*"), key=lambda each: each.relative_to(root).as_posix()):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"l{path.readlink()}"
        elif stat.S_ISREG(mode):
            what = ("x" if mode & stat.S_IXUSR else "f") + _sha256(path)
        else:
            continue
        total.update(f"{path.relative_to(root).as_posix()}\0{what}\0".encode())
    return total.digest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(root: Path) -> dict[str, object]:
    """What `meta.json` holds: every file's size, modification time and (unless huge) SHA-256; every link."""
    files: dict[str, tuple[int, int, str | None]] = {}
    links: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root):
        for name in names + subfolders:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                links[relative] = str(path.readlink())
            elif stat.S_ISREG(found.st_mode):
                sha256 = _sha256(path) if found.st_size <= HASHED_UP_TO_BYTES else None
                files[relative] = (found.st_size, found.st_mtime_ns, sha256)
    return {"format": META_FORMAT, "files": files, "links": links}


def _file_damage(path: str, size: int, mtime_ns: int, sha256: str | None, *, thorough: bool) -> str | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return "is missing"
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    if found.st_size != size:
        return f"has {found.st_size} bytes instead of {size}"
    same_time = found.st_mtime_ns == mtime_ns
    if same_time and not (thorough and sha256):
        return None
    if sha256 is None or _sha256(Path(path)) != sha256:
        return "has changed"
    if not same_time:
        # Restored from a backup or copied: same content, so spare the next check the reading.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(mtime_ns, mtime_ns))
    return None


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _disk_usage(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(folder, name).lstat().st_blocks * 512
    return total


def _sweep(folder: Path, prefix: str) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(prefix):
                _delete(path)


def _delete(path: Path) -> None:
    """Delete a tree, read-only directories too; what cannot be deleted is left for the next sweep."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                Path(folder).chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def _is_disk_full(error: BaseException, root: Path) -> bool:
    """Whether `error` or what caused it is ENOSPC/EDQUOT, or says so (programs that we start report a full
    disk only in words, but a guest's words are of its own), or nothing is left on the disk."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not getattr(cause, "quotes_guest", False) and os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__
    try:
        return shutil.disk_usage(root).free < 1024 * 1024
    except OSError:
        return False


def _full(root: Path, what: str, error: Exception) -> HostError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return HostError(
        f"the disk of {root} is full: {what} ({first})",
        hint="free some space (`kernrig clean` shows what the cache holds), or set KERNRIG_CACHE to a "
        "directory on another disk",
    )


def _unusable(root: Path, error: OSError) -> HostError:
    hint = "set KERNRIG_CACHE to a directory that you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or set KERNRIG_CACHE to a directory on another disk"
    return HostError(f"the cache directory {root} cannot be used: {error}", hint=hint)
