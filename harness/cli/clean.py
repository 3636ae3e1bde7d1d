# SPDX-License-Identifier: MIT
"""`kernrig clean`: what is kept on this host, how large it is, and away with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.failure import Failure, say
from harness.cli.options import read_settings, shared_options

if TYPE_CHECKING:
    from harness.cache import Cache

RESULTS = "results"
LEFTOVERS = "leftovers"
# The locks by which processes share the host's memory: to be there or not decides nothing, to vanish does.
_NEVER = (("state", "slots"),)
_KINDS = {
    "kernel": "kernels, fetched or copied",
    "headers": "headers packages of kernels",
    "toolchain": "compilers of Debian's kernels",
    "test-modules": "our test modules, built for a kernel",
    "bpf-object": "compiled .bpf.c files",
    "rootfs": "the guest's root file system",
    "image": "root file system and modules for a kernel",
    "boot-template": "booted, frozen machines",
    "load-template": "the same with scenarios loaded",
    "state": "package lists, the accelerator's proof",
    RESULTS: "evidence of earlier runs, below this directory",
    LEFTOVERS: "temporary files of processes that were killed",
}
_TEMPORARY_PREFIX = "kernrig-"
# What is younger may belong to a machine that is just being made.
_LEFTOVER_AGE_SECONDS = 3600
_DAY = 86400


@dataclass(frozen=True)
class Item:
    """Something that can be removed: `mtime` is its last use (Unix seconds), `remove` does it."""

    kind: str
    path: Path
    size_bytes: int
    mtime: float
    remove: Callable[[], None]


@click.command(short_help="what the caches hold, with sizes; remove it")
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="only this kind (as listed); may be repeated"
)
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="only what was not used so long",
)
@click.option("--all", "everything", is_flag=True, help=f"the {RESULTS} too")
@click.option("--yes", is_flag=True, help="don't ask")
@shared_options("results")
def clean(kinds: tuple[str, ...], days: float | None, everything: bool, yes: bool, **given: Any) -> None:
    """Show what kernrig keeps on this host, by kind and with sizes, and remove it after a question.

    Everything but the results of earlier runs is meant, unless --kind, --older-than or --all choose; what is removed
    is made again when it is needed.
    """
    from harness.cache import Cache

    cache = Cache.default()
    items = [*cached(cache), *leftovers(), *results(Path.cwd() / read_settings(given).results)]
    wrong = sorted(set(kinds) - _KINDS.keys() - {item.kind for item in items})
    if wrong:
        raise click.UsageError(f"there is no kind {', '.join(wrong)}; there are: {', '.join(_KINDS)}")
    chosen = choose(items, kinds=kinds, days=days, everything=everything, now=time.time())
    click.echo(f"in {cache.root}:")
    for line in _table(items, chosen):
        click.echo(line)
    if not chosen:
        click.echo("nothing to remove")
        return
    size = sum(item.size_bytes for item in chosen)
    running = machines_running(cache)
    if running:
        say("machines are running; runs under way may fail when their templates vanish")
    if not yes:
        _ask(f"Remove {len(chosen)} entries, {_mib(size)}?")
    for item in chosen:
        item.remove()
    if not kinds:
        cache.sweep()
    click.echo(f"removed {len(chosen)} entries, {_mib(size)}")


def choose(
    items: Sequence[Item], *, kinds: Sequence[str], days: float | None, everything: bool, now: float
) -> list[Item]:
    """Those of the items that the options mean. Results are meant only if the options say so."""
    with_results = everything or RESULTS in kinds or (days is not None and not kinds)
    return [
        item
        for item in items
        if (not kinds or item.kind in kinds)
        and (with_results or item.kind != RESULTS)
        and (days is None or now - item.mtime > days * _DAY)
    ]


def cached(cache: Cache) -> Iterator[Item]:
    """The entries of the cache."""
    for entry in cache.entries():
        if (entry.kind, entry.key) not in _NEVER:
            yield Item(
                entry.kind,
                entry.path,
                entry.size_bytes,
                entry.mtime,
                lambda kind=entry.kind, key=entry.key: cache.remove(kind, key),  # type: ignore[misc]
            )


def results(folder: Path) -> Iterator[Item]:
    """One item for each run whose evidence lies in `folder`."""
    if folder.is_dir():
        for run in sorted(folder.iterdir()):
            if run.is_dir() and not run.is_symlink():
                yield _directory(RESULTS, run)


def leftovers() -> Iterator[Item]:
    """Our temporary directories that no process has a file open in any more, and that are an hour old at least."""
    import tempfile

    found = [
        path
        for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*")
        if path.is_dir()
        and not path.is_symlink()
        and path.stat().st_uid == os.geteuid()
        and time.time() - path.stat().st_mtime > _LEFTOVER_AGE_SECONDS
    ]
    if found:
        opened = _opened_files()
        for path in sorted(found):
            if not any(file.startswith(f"{path}/") for file in opened):
                yield _directory(LEFTOVERS, path)


def _opened_files() -> set[str]:
    """The paths of all files that processes which we may look into have open."""
    paths = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            paths.add(str(link.readlink()))
        except OSError:
            continue  # it is gone, or not ours
    return paths


def _directory(kind: str, path: Path) -> Item:
    import shutil

    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                size += Path(folder, name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return Item(kind, path, size, path.stat().st_mtime, lambda: shutil.rmtree(path))


def machines_running(cache: Cache) -> bool:
    """Whether any process holds memory for a machine (harness.vm.slots)."""
    import fcntl

    for file in sorted((cache.root / "state" / "slots").glob("[0-9]*")):
        with file.open("rb") as slot:
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _ask(question: str) -> None:
    """Raises Failure unless the answer is yes."""
    try:
        agreed = click.confirm(question)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        click.echo()
        agreed = False
        if not sys.stdin.isatty():
            raise Failure("nothing was removed", hint="--yes does it without a question") from error
    if not agreed:
        raise Failure("nothing was removed")


def _table(items: Sequence[Item], chosen: Sequence[Item]) -> Iterator[str]:
    """A line for each kind: entries, size, how much of it would go, what it is."""
    kinds = [*_KINDS, *sorted({item.kind for item in items} - _KINDS.keys())]
    for kind in kinds:
        mine = [item for item in items if item.kind == kind]
        if mine:
            going = [item for item in chosen if item.kind == kind]
            part = "all" if len(going) == len(mine) else f"{len(going)}" if going else "none"
            size = _mib(sum(item.size_bytes for item in mine))
            yield f"  {kind:<14} {len(mine):>5} {size:>11}   remove {part:<5} {_KINDS.get(kind, '')}".rstrip()
    yield f"  {'':<14} {len(items):>5} {_mib(sum(item.size_bytes for item in items)):>11}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
