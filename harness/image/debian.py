# SPDX-License-Identifier: MIT
"""Debian packages unpacked into a directory, without their maintainer scripts and without privileges."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from harness import host
from harness.errors import HostError, KernrigError
from harness.image import tools
from harness.image.recipe import Recipe

SUITE = "trixie"
# Debian's base-files makes these links in its maintainer script; `--variant=extract` runs none.
MERGED_USR = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}

# Lists the downloaded packages between two marks on the standard error output; `--variant=extract` keeps no
# other record.
_LIST_PACKAGES = 'echo "packages:" >&2; ls "$1/var/cache/apt/archives" >&2; echo "end of packages" >&2'
_MIRROR_HINT = "set KERNRIG_MIRROR to the address of a Debian archive"


def mirror() -> str:
    """The address of a Debian archive: KERNRIG_MIRROR, else the one the host's apt uses, else HostError."""
    sources = host.apt_sources()
    for codename in (SUITE, *(source.codename or source.release for source in sources)):
        if (found := host.debian_mirror(sources, codename)) is not None:
            return found
    raise HostError(
        "the host's apt knows no Debian mirror to build the image from",
        hint=f"run `apt-get update`, or {_MIRROR_HINT}",
    )


def download(tar: Path, packages: Iterable[str], archive: str | None) -> dict[str, str]:
    """Write a tar archive of `packages` and their dependencies, unpacked; returns versions by package name.

    `archive` is the address of a Debian archive; None takes what `mirror` finds. Raises HostError when the
    host lacks mmdebstrap, the archive's keys or an archive, KernrigError when mmdebstrap(1) fails.
    """
    program = host.which("mmdebstrap")
    if program is None:
        raise HostError("building the image needs mmdebstrap", hint="apt-get install mmdebstrap")
    if not host.KEYRING.exists():
        raise HostError(
            f"building the image needs the keys of Debian's archive; there is no {host.KEYRING}",
            hint="apt-get install debian-archive-keyring",
        )
    if archive is None:
        archive = mirror()
    # Nothing of the packages runs, so an ordinary user needs neither fakeroot nor user namespaces.
    mode = "root" if os.geteuid() == 0 else "chrootless"
    command = [str(program), "--variant=extract", f"--mode={mode}", "--architectures=amd64"]
    command += [f"--include={','.join(packages)}", f"--keyring={host.KEYRING}", "--skip=output/dev"]
    command += [f"--extract-hook={_LIST_PACKAGES}", "--format=tar", SUITE, "-", archive]
    done = tools.run(
        command,
        step=f"unpacking Debian {SUITE} packages from {archive}",
        hint=_hint,
        to=tar,
        # Where whoever made `tar`'s directory will take it away, should mmdebstrap be killed.
        env={"TMPDIR": str(tar.parent)},
    )
    return _versions(done.err)


def _hint(log: str) -> str:
    if re.search(r"NO_PUBKEY|not signed|Missing key|is not trusted", log):
        return f"the host's keys know nothing of {SUITE}: apt-get install debian-archive-keyring"
    if re.search(
        r"Could not resolve|Could not connect|Failed to fetch|Connection|does not have a Release file", log
    ):
        return f"is the mirror reachable, and does it have {SUITE}? Otherwise {_MIRROR_HINT}"
    return "run `mmdebstrap --variant=extract` by hand to see more"


def _versions(log: str) -> dict[str, str]:
    """From file names as apt stores them: NAME_VERSION_ARCHITECTURE.deb with a colon written as %3a."""
    listing = log.partition("packages:\n")[2].partition("end of packages")[0]
    names = (line.split("_") for line in listing.splitlines() if line.endswith(".deb"))
    return {name: unquote(version) for name, version, _ in names}


def unpack(tar: Path, root: Path, recipe: Recipe) -> None:
    """Unpack what `recipe` keeps of the archive into `root`. Owners, times and device nodes are left out."""
    with tarfile.open(tar) as archive:
        for member in archive:
            path = _below_usr(os.path.normpath(member.name))
            if path == "." or path.startswith(("../", "/")) or not recipe.keeps(path):
                continue
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if member.isdir():
                place.mkdir(exist_ok=True)
            elif member.issym():
                place.symlink_to(member.linkname)
            elif member.isreg() or member.islnk():
                content = archive.extractfile(member)
                if content is None:
                    raise KernrigError(
                        f"{member.name} is a link to nothing in the archive of Debian packages"
                    )
                with place.open("wb") as out:
                    shutil.copyfileobj(content, out)
                place.chmod(0o755 if member.mode & 0o111 else 0o644)


def _below_usr(path: str) -> str:
    top, slash, _ = path.partition("/")
    return f"usr/{path}" if slash and top in MERGED_USR else path
