# SPDX-License-Identifier: MIT
"""The kernel modules of an image: those asked for, what they depend on, and indexes that fit."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from harness import host
from harness.errors import HostError, KernrigError
from harness.image import tools

_FILE = re.compile(r"(?P<name>.+)\.ko(?P<compression>\.xz|\.zst|\.gz)?")
# Lists that the kernel's build leaves for depmod(8), beside the modules.
_BUILD_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


@dataclass(frozen=True)
class Selection:
    """Which modules an image gets.

    `included` are paths relative to the kernel's module directory, dependencies too; `builtin` are names that
    the kernel has built in, `missing` names that it does not have at all. All are sorted.
    """

    included: tuple[Path, ...]
    builtin: tuple[str, ...]
    missing: tuple[str, ...]


def select(modules: Path | None, names: Iterable[str]) -> Selection:
    """Resolve module names against a kernel's module directory (None: the kernel has none, so all names are
    missing).

    Dependencies come from the modules themselves ("depends=" and "softdep=" in .modinfo, Linux
    include/linux/module.h), because a kernel package that was only unpacked has no modules.dep. Raises
    KernrigError for a module that cannot be read.
    """
    if modules is None:
        return Selection((), (), tuple(sorted(names)))
    available = _available(modules)
    builtin_names = _builtin(modules)
    included: dict[str, Path] = {}
    builtin, missing = set(), set()
    wanted = [(name, True) for name in names]
    while wanted:
        name, required = wanted.pop()
        name = _canonical(name)
        if name in included:
            continue
        if name in available:
            included[name] = available[name]
            wanted += _dependencies(modules / available[name])
        elif name in builtin_names:
            builtin.add(name)
        elif required:
            missing.add(name)
    return Selection(tuple(sorted(included.values())), tuple(sorted(builtin)), tuple(sorted(missing)))


def install(
    root: Path, release: str, modules: Path | None, selection: Selection, extra: Iterable[Path] = ()
) -> None:
    """Copy the selected modules below `root`/usr/lib/modules/`release`, uncompressed, and index them.

    `extra` are module files from elsewhere; they land in updates/ and win over the kernel's own. Raises
    KernrigError when a module cannot be read or depmod fails, HostError when there is no depmod.
    """
    target = root / "usr/lib/modules" / release
    target.mkdir(parents=True)
    for name in _BUILD_LISTS:
        if modules is not None and (modules / name).exists():
            shutil.copyfile(modules / name, target / name)
    if modules is not None:
        for path in selection.included:
            _copy(modules / path, target / path.parent)
    for path in extra:
        _copy(path, target / "updates")
    _index(root, release)


def _canonical(name: str) -> str:
    # The kernel treats both alike in names, files use either.
    return name.replace("-", "_")


def _available(modules: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(modules.rglob("*.ko*")):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(_canonical(match["name"]), path.relative_to(modules))
    return found


def _builtin(modules: Path) -> set[str]:
    listing = modules / "modules.builtin"
    if not listing.exists():
        return set()
    return {_canonical(Path(line).name.removesuffix(".ko")) for line in listing.read_text().splitlines()}


def _dependencies(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of modules that `path` needs, each with whether it cannot do without."""
    try:
        section = ELFFile(io.BytesIO(_content(path))).get_section_by_name(".modinfo")
    except ELFError as error:
        raise KernrigError(f"{path} is no kernel module: {error}") from error
    for field in section.data().split(b"\0") if section is not None else ():
        key, _, value = field.decode(errors="replace").partition("=")
        if key == "depends":
            yield from ((name, True) for name in value.split(",") if name)
        elif key == "softdep":
            yield from ((name, False) for name in value.split() if not name.endswith(":"))


def _content(path: Path) -> bytes:
    """The uncompressed module."""
    try:
        data = path.read_bytes()
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".zst":
                import zstandard

                return zstandard.ZstdDecompressor().decompressobj().decompress(data)
            case _:
                return data
    except Exception as error:
        # Each library has exceptions of its own for damaged data; all mean the same here.
        raise KernrigError(
            f"the kernel module {path} cannot be read: {type(error).__name__}: {error}",
            hint="`kernrig clean` drops a damaged download from the cache",
        ) from error


def _copy(source: Path, folder: Path) -> None:
    match = _FILE.fullmatch(source.name)
    if match is None:
        raise KernrigError(
            f"{source} is no kernel module", hint="a module's name ends in .ko, .ko.xz, .ko.zst or .ko.gz"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{match['name']}.ko").write_bytes(_content(source))


def _index(root: Path, release: str) -> None:
    program = host.which("depmod")
    if program is None:
        raise HostError("indexing the guest's kernel modules needs depmod", hint="apt-get install kmod")
    # depmod looks below lib/ or usr/lib/, as its distribution built it.
    merged = root / "lib"
    merged.symlink_to("usr/lib")
    tools.run(
        [str(program), "-b", str(root), release],
        step=f"indexing the modules of kernel {release}",
        hint="does the modules directory belong to this kernel?",
    )
    merged.unlink()
