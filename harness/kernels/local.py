# SPDX-License-Identifier: MIT
"""Kernels from the host's file system: a bzImage, with modules and configuration found beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.cache import Cache, Say, digest
from harness.errors import KernrigError
from harness.kernels import stored, vmlinux
from harness.kernels.kernel import Headers, Kernel

# Where the build puts its bzImage, below the top of the tree.
_BUILT_IN = ("arch/x86/boot/bzImage", "arch/x86_64/boot/bzImage")
# Links from an installed module tree to the build: not part of it, and huge.
_NOT_MODULES = shutil.ignore_patterns("build", "source", "vmlinuz", "vdso")


@dataclass(frozen=True)
class Found:
    """What belongs to a bzImage: an installed module tree (its content is that of `lib/modules/RELEASE`),
    or the build tree whose modules are not installed, or neither; and the file that holds the
    configuration, if any."""

    image: vmlinux.BzImage
    installed: Path | None
    build_tree: Path | None
    config: Path | None


def resolve(name: str, *, modules: Path | None, cache: Cache, say: Say | None = None) -> Kernel:
    """The kernel in the file `name`, copied into the cache with its modules.

    Modules come from `modules` (an installed tree: the directory of the release, or one above it), else
    from beside the bzImage (`lib/modules/RELEASE`, `modules`), from the build tree it lies in, or from
    `/lib/modules` for a kernel in `/boot`. Raises KernrigError for anything that is no usable kernel.
    """
    path = Path(name).expanduser().absolute()
    image = vmlinux.identify(path)
    found = find(image, modules)
    key = digest("local", stored.LAYOUT, *_fingerprint(found))
    entry = cache.get(stored.KIND, key)
    if entry is None:
        if say is not None:
            say(f"preparing the kernel {path} ({image.release}): modules, BTF, module index")
        entry = cache.build(stored.KIND, key, lambda folder: _make(folder, found), say=say)
    return stored.load(entry, name)


def headers(kernel: Kernel) -> Headers:
    """The build tree that the kernel came from, or what its installed modules' `build` link names.

    Raises KernrigError when there is neither.
    """
    path = Path(kernel.provenance.package)
    tree = _build_tree(path)
    candidates = [] if tree is None else [tree]
    candidates += [each / "build" for each in _beside(path, kernel.release)]
    for build in candidates:
        if (build / "Makefile").exists() and (build / ".config").exists():
            build = build.resolve()
            return Headers(build, build, kernel.release)
    raise KernrigError(
        f"nothing to build modules with for the kernel {path} ({kernel.release})",
        hint=f"leave the bzImage in its build tree ({_BUILT_IN[0]}), or put a link to the tree at "
        f"{path.parent}/lib/modules/{kernel.release}/build",
    )


def find(image: vmlinux.BzImage, modules: Path | None) -> Found:
    """Look for what belongs to a bzImage. Raises KernrigError when `modules` is given but is not its
    modules."""
    path, release = image.path, image.release
    own_tree = _build_tree(path)
    tree = None
    if modules is not None:
        installed = _installed_below(modules.expanduser().absolute(), release)
        if installed is None:
            raise KernrigError(
                f"no modules for the kernel {path} ({release}) in {modules}: {_what_lies_in(modules)}",
                hint="give the directory lib/modules/RELEASE that `make modules_install` made, or the one "
                "that holds lib/modules",
            )
    else:
        installed = next((each for each in _beside(path, release) if _is_module_tree(each)), None)
        if installed is None and own_tree is not None and (own_tree / "modules.order").exists():
            tree = own_tree
    configs = [path.parent / f"config-{release}", path.parent / f"{path.name}.config"]
    if own_tree is not None:
        configs.append(own_tree / ".config")
    configs += [path.parent / ".config", path.parent / "config"]
    if installed is not None:
        configs += [installed / "config", installed / "build" / ".config"]
    config = next((each for each in configs if each.is_file()), None)
    return Found(image, installed, tree, config)


def _build_tree(path: Path) -> Path | None:
    """The kernel tree that a bzImage lies in, where its build put it."""
    real = path.resolve()
    for place in _BUILT_IN:
        if real.as_posix().endswith(f"/{place}"):
            return real.parents[len(Path(place).parts) - 1]
    # arch/x86_64/boot/bzImage is a link to arch/x86's.
    return None


def _beside(path: Path, release: str) -> Iterator[Path]:
    """Places where the modules of a bzImage may be installed."""
    folder = path.parent
    yield folder / "lib" / "modules" / release
    yield folder / "usr" / "lib" / "modules" / release
    yield folder / "modules" / "lib" / "modules" / release
    yield folder / "modules" / release
    yield folder / "modules"
    if folder.name == release:
        yield folder
    tree = _build_tree(path)
    if tree is not None:
        yield tree / "modules" / "lib" / "modules" / release
        yield tree / "modules" / release
        yield tree / "modules"
    if folder.name == "boot":
        yield folder.parent / "lib" / "modules" / release
        yield folder.parent / "usr" / "lib" / "modules" / release


def _installed_below(folder: Path, release: str) -> Path | None:
    """The module tree of `release` in a directory that was named as holding it."""
    for each in (
        folder / "lib" / "modules" / release,
        folder / "usr" / "lib" / "modules" / release,
        folder / release,
    ):
        if each.is_dir():
            return each
    return folder if _is_module_tree(folder) else None


def _is_module_tree(folder: Path) -> bool:
    """Whether it looks like `lib/modules/RELEASE`: the build leaves `modules.order`, depmod `modules.dep`."""
    # A kernel tree has a modules.order too, and a directory kernel/.
    return (
        folder.is_dir()
        and not (folder / "Kbuild").exists()
        and any((folder / name).exists() for name in ("modules.order", "modules.dep", "kernel"))
    )


def _what_lies_in(folder: Path) -> str:
    folder = folder.expanduser()
    if not folder.exists():
        return "there is no such directory"
    if not folder.is_dir():
        return "it is not a directory"
    for base in (folder / "lib" / "modules", folder / "usr" / "lib" / "modules", folder):
        if base.is_dir():
            releases = sorted(each.name for each in base.iterdir() if _is_module_tree(each))
            if releases:
                return f"it has those of {', '.join(releases)}"
    return "it holds no module tree"


def _built_modules(tree: Path) -> Iterator[str]:
    """The modules of a build, relative to the tree's top. `modules.order` names .ko files, before 6.2 and
    since 6.3 .o files (scripts/Makefile.modinst)."""
    for line in (tree / "modules.order").read_text().splitlines():
        name = line.strip()
        if name:
            yield str(Path(name).with_suffix(".ko"))


def _fingerprint(found: Found) -> Iterator[str]:
    """What changes when the kernel, a module or the configuration does; by size and time, for a tree of
    thousands of modules is not read at every start."""
    yield from _stamp(found.image.path)
    if found.config is not None:
        yield from _stamp(found.config)
    if found.installed is not None:
        for folder, subfolders, names in os.walk(found.installed):
            subfolders.sort()
            if Path(folder) == found.installed:
                subfolders[:] = [each for each in subfolders if each not in ("build", "source", "vdso")]
            for name in sorted(names):
                yield from _stamp(Path(folder, name))
    if found.build_tree is not None:
        for name in ("modules.order", "modules.builtin", *_built_modules(found.build_tree)):
            yield from _stamp(found.build_tree / name)


def _stamp(path: Path) -> Iterator[str]:
    yield str(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        yield "missing"
    else:
        yield f"{found.st_size} {found.st_mtime_ns}"


def _make(folder: Path, found: Found) -> None:
    release = found.image.release
    target = stored.modules_folder(folder, release)
    if found.installed is not None:
        shutil.copytree(found.installed, target, symlinks=True, ignore=_NOT_MODULES)
    elif found.build_tree is not None:
        _install(found.build_tree, target)
    config = None if found.config is None else found.config.read_text(encoding="utf-8", errors="replace")
    parts = [
        str(each) for each in (found.image.path, found.installed or found.build_tree, found.config) if each
    ]
    stored.write(
        folder,
        stored.Parts(
            vmlinuz=found.image.path,
            config=config,
            package=str(found.image.path),
            version=release,
            source="local",
            parts=tuple(parts),
        ),
    )


def _install(tree: Path, target: Path) -> None:
    """What `make modules_install` does, without needing a tree that is ready to run make."""
    target.mkdir(parents=True)
    for name in _built_modules(tree):
        if not (tree / name).exists():
            raise KernrigError(
                f"the kernel tree {tree} lists the module {name}, but it is not built",
                hint=f"run `make -C {tree} modules`",
            )
        (target / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, target / "kernel" / name)
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        if (tree / name).exists():
            shutil.copyfile(tree / name, target / name)
    order = "".join(f"kernel/{name}\n" for name in _built_modules(tree))
    (target / "modules.order").write_text(order)
