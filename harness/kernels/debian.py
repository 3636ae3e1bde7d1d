# SPDX-License-Identifier: MIT
"""Kernels from Debian's packages: `debian`, `debian:6.12`, `debian:6.12.107-1`, `debian:trixie-backports`."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cache import Cache, Say, digest
from harness.errors import HostError, KernrigError
from harness.kernels import stored
from harness.kernels.kernel import AvailableKernel, Headers, Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.kernels.debian_index import Candidate, Index, Package

PREFIX = "debian"
# A name that means "the newest" is looked up again after this long.
POINTER_FRESH_S = 24 * 3600.0
_RETRY_S = 300.0
_EXACT = re.compile(r"\d[^-]*-[^-]+")
_NAMES = re.compile(
    r"linux-image-cloud-amd64|linux-kbuild-\d[^ ]*|"
    r"linux-(?:image|base|binary|modules|headers)-\d[^ ]*-(?:cloud-amd64|common)"
)


def is_name(name: str) -> bool:
    """Whether `name` is one that this module resolves."""
    return name == PREFIX or name.startswith(f"{PREFIX}:")


def resolve(name: str, *, cache: Cache, say: Say | None = None, refresh: bool = False) -> Kernel:
    """The kernel that `name` stands for, fetched when it is not in the cache.

    What the name stood for within the last day is taken without asking apt, unless `refresh`. Without a
    network, an older answer serves too. Raises KernrigError when nothing matches or it cannot be fetched.
    """
    wanted = name.partition(":")[2]
    known = stored.pointer(cache, name)
    if known is not None and not refresh:
        fresh = known.age_s < POINTER_FRESH_S or _EXACT.fullmatch(wanted)
        if fresh and (entry := cache.get(stored.KIND, known.key)) is not None:
            return stored.load(entry, name)
    try:
        candidate = _select(cache, wanted, say=say, max_age_s=_RETRY_S if refresh else None)
    except HostError:
        raise
    except KernrigError as error:
        entry = cache.get(stored.KIND, known.key) if known is not None else None
        if entry is None:
            raise
        if say is not None:
            say(f"{error.what}; using the kernel that {name} stood for before")
        return stored.load(entry, name)
    key = _key(candidate)
    entry = cache.build(stored.KIND, key, lambda folder: _make(folder, candidate, cache, say), say=say)
    stored.point(cache, name, key)
    return stored.load(entry, name)


def available(cache: Cache, say: Say | None = None) -> list[AvailableKernel]:
    """Everything Debian's lists offer, oldest first, the incomplete ones too."""
    return [
        AvailableKernel(
            name=f"{PREFIX}:{each.version}",
            release=each.release,
            version=each.version,
            suites=each.suites,
            incomplete=each.missing,
            fetched=each.missing is None and cache.get(stored.KIND, _key(each)) is not None,
        )
        for each in _index(cache, say=say).candidates
    ]


def version_of(name: str, *, cache: Cache, say: Say | None = None) -> str:
    """The exact Debian version that `name` stands for, without fetching it. Raises KernrigError when nothing
    matches."""
    return _select(cache, name.partition(":")[2], say=say, max_age_s=None).version


def changelog(older: str, newer: str, *, cache: Cache, say: Say | None = None) -> str:
    """What Debian's changelog says of the versions after `older` up to `newer` (or the other way round), newest first.

    It comes with the headers package of the newer version. Says why instead when that cannot be had.
    """
    from debian.changelog import Changelog
    from debian.debian_support import Version

    first, last = sorted((Version(older), Version(newer)))
    try:
        candidate = _select(cache, str(last), say=say, max_age_s=None)
        packages = _index(cache, say=say).headers(candidate.release, candidate.version)
        key = digest("headers", *(package.file for package in packages))
        entry = cache.build("headers", key, lambda folder: _unpack(packages, folder, cache, say), say=say)
        files = sorted(entry.glob("usr/share/doc/linux-headers-*-common/changelog.Debian.gz"))
        if not files:
            return f"the headers of {last} come without a changelog"
        with gzip.open(files[0], "rt", encoding="utf-8", errors="replace") as file:
            blocks = list(Changelog(file, allow_empty_author=True))
    except (KernrigError, OSError, EOFError) as error:
        return f"the changelog of {last} cannot be had: {error}"
    wanted = [block for block in blocks if first < block.version <= last]
    return (
        "\n".join(str(block).rstrip() for block in wanted)
        or f"the changelog of {last} has no entry of its own"
    )


def headers(kernel: Kernel, *, cache: Cache, say: Say | None = None) -> Headers:
    """The unpacked headers packages for a kernel of ours; see Headers for where things lie.

    Raises KernrigError when they cannot be had.
    """
    name = f"headers {kernel.release} {kernel.provenance.version}"
    known = stored.pointer(cache, name)
    entry = cache.get("headers", known.key) if known is not None else None
    if entry is None:
        packages = _index(cache, say=say).headers(kernel.release, kernel.provenance.version)
        key = digest("headers", *(package.file for package in packages))
        entry = cache.build("headers", key, lambda folder: _unpack(packages, folder, cache, say), say=say)
        stored.point(cache, name, key)
    build = entry / "usr" / "src" / f"linux-headers-{kernel.release}"
    if not (build / ".config").exists():
        raise KernrigError(
            f"the headers packages of {kernel.release} hold no {build.relative_to(entry)}/.config"
        )
    return Headers(entry, build, kernel.release)


def _key(candidate: Candidate) -> str:
    return digest(stored.LAYOUT, *(package.file for package in candidate.packages))


def _index(cache: Cache, *, say: Say | None, max_age_s: float | None = None) -> Index:
    from harness.kernels.apt import FRESH_S, PrivateApt
    from harness.kernels.debian_index import Index, parse

    with cache.state("apt", say=say) as home:
        apt = PrivateApt(home, say=say)
        apt.ensure_lists(max_age_s=FRESH_S if max_age_s is None else max_age_s)
        names = [name for name in apt.names("linux-") if _NAMES.fullmatch(name)]
        return Index(parse(*apt.records(names)))


def _select(cache: Cache, wanted: str, *, say: Say | None, max_age_s: float | None) -> Candidate:
    from harness.kernels.apt import RETRY_S, SECURITY_SUITES, SUITES
    from harness.kernels.debian_index import select

    suites = (*SUITES, *SECURITY_SUITES)
    try:
        return select(_index(cache, say=say, max_age_s=max_age_s), wanted, suites)
    except HostError:
        raise
    except KernrigError:
        if max_age_s is not None:
            raise
    # Perhaps it appeared since the lists were fetched.
    return select(_index(cache, say=say, max_age_s=RETRY_S), wanted, suites)


def _make(folder: Path, candidate: Candidate, cache: Cache, say: Say | None) -> None:
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    _unpack(candidate.packages, unpacked, cache, say)
    release = candidate.release
    image = candidate.packages[0]
    kernels = _existing(unpacked, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz")
    configs = _existing(unpacked, "boot/config-*", "usr/lib/modules/*/config", "lib/modules/*/config")
    modules = _existing(unpacked, "usr/lib/modules/*/kernel", "lib/modules/*/kernel")
    vmlinuz, config, tree = next(kernels, None), next(configs, None), next(modules, None)
    if vmlinuz is None or config is None or tree is None:
        raise KernrigError(
            f"the packages of the Debian kernel {candidate.version} hold no "
            f"{'bzImage' if vmlinuz is None else 'config' if config is None else 'modules'}: "
            f"{', '.join(package.name for package in candidate.packages)}",
            hint="Debian may have changed its packaging; take another version",
        )
    target = stored.modules_folder(folder, tree.parent.name)
    target.parent.mkdir(parents=True)
    text = config.read_text(encoding="utf-8", errors="replace")
    kept = folder / "vmlinuz.unpacked"
    vmlinuz.rename(kept)
    tree.parent.rename(target)
    for extra in ("build", "source", "vmlinuz", "config", "System.map"):
        (target / extra).unlink(missing_ok=True)
    if say is not None:
        say(f"preparing the kernel {release}: BTF, module index")
    parts = stored.Parts(
        vmlinuz=kept,
        config=text,
        package=image.name,
        version=candidate.version,
        source="debian",
        suites=candidate.suites,
        parts=tuple(package.file for package in candidate.packages),
    )
    stored.write(folder, parts)
    shutil.rmtree(unpacked)


def _existing(root: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(pattern))


def _unpack(packages: tuple[Package, ...], folder: Path, cache: Cache, say: Say | None) -> None:
    """Download packages, verified by apt, and unpack them all into `folder`, which keeps nothing else."""
    from harness.kernels.apt import PrivateApt

    if shutil.which("dpkg-deb") is None:
        raise HostError("there is no dpkg-deb on this host", hint="install dpkg")
    size = sum(package.size for package in packages)
    if say is not None:
        say(f"downloading {packages[0].name} {packages[0].version} ({size / 1e6:.0f} MB)")
    downloads = folder / ".downloads"
    downloads.mkdir()
    with cache.state("apt", say=say) as home:
        wanted = [(package.name, package.version) for package in packages]
        files = PrivateApt(home, say=say).download(wanted, downloads, size=size)
    for file in files:
        done = subprocess.run(
            ["dpkg-deb", "-x", str(file), str(folder)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode != 0:
            raise KernrigError(f"{file.name} cannot be unpacked: {done.stderr.strip()}")
    shutil.rmtree(downloads)
