# SPDX-License-Identifier: MIT
"""A name becomes a Kernel: Debian's packages, a bzImage on the host, or a source tree that gets built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.cache import Cache
from harness.errors import KernrigError
from harness.kernels.config import KernelConfig
from harness.kernels.kernel import AvailableKernel, Headers, Kernel, Provenance

__all__ = [
    "DEFAULT",
    "AvailableKernel",
    "Headers",
    "Kernel",
    "KernelConfig",
    "Provenance",
    "available",
    "is_path",
    "resolve",
]

DEFAULT = "debian"
_NAMES = (
    "a kernel is named `debian` (Debian stable's), `debian:6.12` (the newest of a series), `debian:VERSION` "
    "(an exact Debian version), `debian:SUITE`, by the path of a bzImage, or from source as "
    "`tree:PATH[@REV][+FLAVOUR...]` or `deb-source:SERIES[+FLAVOUR...]`; `kernrig kernel list` shows what "
    "Debian has"
)


def resolve(
    name: str,
    *,
    modules: Path | None = None,
    cache: Cache,
    say: Callable[[str], None] | None = None,
    refresh: bool = False,
) -> Kernel:
    """The kernel that `name` stands for, ready to boot; fetched and prepared when it is not in the cache.

    `modules` belongs to a path: where its modules lie if not beside it. `refresh` asks Debian's lists again
    even when they were asked a short while ago. Raises KernrigError when there is no such kernel or
    scenarios cannot run on it.
    """
    from harness.kernels import debian, source

    if debian.is_name(name) or source.is_name(name):
        if modules is not None:
            raise KernrigError(
                f"modules were given ({modules}) for the kernel {name}, which brings its own",
                hint="--kr-modules goes with the path of a bzImage",
            )
        if source.is_name(name):
            return source.resolve(name, cache=cache, say=say, refresh=refresh)
        return debian.resolve(name, cache=cache, say=say, refresh=refresh)
    if not name.strip():
        raise KernrigError("the name of the kernel is empty", hint=_NAMES)
    path = Path(name).expanduser()
    if not path.exists() and "/" not in name:
        raise KernrigError(f"there is no kernel {name!r}: neither a known name nor a file", hint=_NAMES)
    from harness.kernels import local

    return local.resolve(name, modules=modules, cache=cache, say=say)


def is_path(name: str) -> bool:
    """Whether `name` names a file of the host, so that it may need modules from elsewhere."""
    from harness.kernels import debian, source

    return not debian.is_name(name) and not source.is_name(name)


def available(cache: Cache, say: Callable[[str], None] | None = None) -> list[AvailableKernel]:
    """All kernels that Debian's lists offer, oldest first, the incomplete ones with the reason."""
    from harness.kernels import debian

    return debian.available(cache, say)
