# SPDX-License-Identifier: MIT
"""A private apt: Debian's package lists and packages, verified, without touching the host's own apt.

The host's apt configuration (proxy, credentials) is used; its sources, lists, caches, pins and hooks are not.
See apt.conf(5) and sources.list(5).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cache import Say
from harness.errors import HostError, KernrigError

# Newest releases last; what a name prefers is decided in debian_index.
RELEASES = ("bookworm", "trixie")
SUITES = (
    *(f"{release}{pocket}" for release in RELEASES for pocket in ("", "-updates", "-backports")),
    "sid",
    "experimental",
)
SECURITY_SUITES = tuple(f"{release}-security" for release in RELEASES)

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

FRESH_S = 6 * 3600.0
# After a failed update, and before lists are refreshed again because a name was not found.
RETRY_S = 300.0
UPDATE_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 1800.0
QUERY_TIMEOUT_S = 120.0
# Lists (65 MB) and apt's cache of them (95 MB), and as much again while they are replaced.
LISTS_NEED_BYTES = 300_000_000

_CONFIGURATION = """\
Dir::Etc::SourceList "{home}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{home}/state";
Dir::State::Lists "{home}/lists";
Dir::State::status "{home}/status";
Dir::State::extended_states "{home}/extended_states";
Dir::Cache "{home}/cache";
Dir::Cache::Archives "{home}/cache/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
APT::Update::Error-Mode "any";
APT::Sandbox::User "root";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""


@dataclass(frozen=True)
class Mirror:
    """Where Debian's packages come from: the archive, and the security archive if one is known."""

    archive: str
    security: str | None

    @classmethod
    def configured(cls) -> Mirror:
        """`KERNRIG_MIRROR` (and `KERNRIG_SECURITY_MIRROR`), or what the host's apt uses for Debian.

        Raises HostError when neither names one.
        """
        security = os.environ.get("KERNRIG_SECURITY_MIRROR")
        if archive := os.environ.get("KERNRIG_MIRROR"):
            return cls(archive, security)
        found = parse_index_targets(_host_index_targets())
        if found is None:
            raise HostError(
                "no Debian mirror is known: the host's apt has no source for Debian",
                hint="set KERNRIG_MIRROR to the address of a Debian mirror",
            )
        return cls(found.archive, security or found.security)


def parse_index_targets(text: str) -> Mirror | None:
    """The mirror in the output of `apt-get indextargets` (lines of LABEL|RELEASE|REPO_URI), or None.

    The label is empty before the host's first `apt-get update`, then the name of the release decides.
    """
    archive = security = None
    for line in text.splitlines():
        label, release, uri = line.split("|", 2)
        base = release.removesuffix("/updates").partition("-")[0]
        debian = label.startswith("Debian") or (
            not label
            and base in (*RELEASES, "bullseye", "stable", "oldstable", "testing", "sid", "unstable", "forky")
        )
        if not debian:
            continue
        if label == "Debian-Security" or release.endswith(("-security", "/updates")):
            security = security or uri
        else:
            archive = archive or uri
    return None if archive is None else Mirror(archive, security)


def _host_index_targets() -> str:
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(LABEL)|$(RELEASE)|$(REPO_URI)",
        "Created-By: Packages",
    ]
    return _run(command, timeout_s=QUERY_TIMEOUT_S, what="asking the host's apt for its mirror")


@dataclass(frozen=True)
class _Stamp:
    """How the lists came about: the mirror asked for; when updates succeeded and failed (Unix seconds)."""

    mirror: str
    updated: float
    failed: float


class PrivateApt:
    """apt with all its directories below `home` (a state directory of the cache, held by the caller)."""

    def __init__(self, home: Path, *, say: Say | None = None) -> None:
        self._home = home
        self._tell = say

    def _say(self, text: str) -> None:
        if self._tell is not None:
            self._tell(text)

    def ensure_lists(self, *, max_age_s: float = FRESH_S) -> None:
        """Bring the package lists up to date unless a successful update is younger than `max_age_s`.

        When that fails but older lists are there, they are used, and `say` is told. Raises KernrigError
        when there are none.
        """
        stamp = self._read_stamp()
        now = time.time()
        known = stamp.mirror == os.environ.get("KERNRIG_MIRROR", "") and self._has_lists()
        if known and (0 <= now - stamp.updated < max_age_s or 0 <= now - stamp.failed < RETRY_S):
            return
        try:
            mirror = self._prepare()
            # apt-get 2.6 hangs for ever when the disk fills up under it.
            _require_space(self._home, LISTS_NEED_BYTES, "Debian's package lists")
            self._say("fetching Debian's package lists")
            self._apt("apt-get", "update", timeout_s=UPDATE_TIMEOUT_S, what="fetching Debian's package lists")
        except KernrigError as error:
            # A mirror may lack a suite: what did arrive is good.
            if not (known or self._hold_kernels()):
                for half in ("lists", "cache"):
                    shutil.rmtree(self._home / half, ignore_errors=True)
                raise
            self._write_stamp(
                _Stamp(os.environ.get("KERNRIG_MIRROR", ""), stamp.updated if known else 0.0, now)
            )
            self._say(f"{error.what}; going on with the lists there are")
            return
        self._write_stamp(_Stamp(mirror, now, 0.0))

    def names(self, prefix: str) -> list[str]:
        """The names of all packages in the lists that start with `prefix`."""
        text = self._apt(
            "apt-cache", "pkgnames", prefix, timeout_s=QUERY_TIMEOUT_S, what="reading the package lists"
        )
        return sorted(set(text.split()))

    def records(self, names: Sequence[str]) -> tuple[str, str]:
        """What the lists say of all versions of `names`: their control records, and `apt-cache madison`'s
        lines (`NAME | VERSION | ADDRESS SUITE/COMPONENT ...`), which say in what suites they are."""
        if not names:
            return "", ""
        what = "reading the package lists"
        show = self._apt("apt-cache", "show", "--all-versions", *names, timeout_s=QUERY_TIMEOUT_S, what=what)
        madison = self._apt("apt-cache", "madison", *names, timeout_s=QUERY_TIMEOUT_S, what=what)
        return show, madison

    def download(self, packages: Iterable[tuple[str, str]], folder: Path, *, size: int) -> list[Path]:
        """Fetch (name, version) packages of together `size` bytes into `folder`; apt verifies each against
        the signed lists. Raises KernrigError when one cannot be had, HostError when there is no space to
        unpack them.
        """
        # The packages, and unpacked about three times as much (headers; kernels unpack to little more).
        _require_space(folder, 4 * size, "a kernel's packages")
        wanted = [f"{name}={version}" for name, version in packages]
        self._apt(
            "apt-get",
            "download",
            *wanted,
            timeout_s=DOWNLOAD_TIMEOUT_S,
            what=f"downloading {', '.join(wanted)}",
            cwd=folder,
        )
        found = sorted(folder.glob("*.deb"))
        if len(found) != len(wanted):
            raise KernrigError(
                f"apt downloaded {len(found)} files instead of {len(wanted)}: {', '.join(wanted)}"
            )
        return found

    def _prepare(self) -> str:
        """Write apt's configuration; returns the mirror that was asked for by KERNRIG_MIRROR, if any."""
        keyring = next((path for path in KEYRINGS if path.exists()), None)
        if keyring is None:
            raise HostError(
                f"Debian's signing keys are not on this host: {KEYRINGS[0]} is missing",
                hint="apt-get install debian-archive-keyring",
            )
        mirror = Mirror.configured()
        options = f"[arch=amd64 lang=none target=Packages pdiffs=no signed-by={keyring}]"
        lines = [f"deb {options} {mirror.archive} {suite} main" for suite in SUITES]
        if mirror.security is not None:
            lines += [f"deb {options} {mirror.security} {suite} main" for suite in SECURITY_SUITES]
        for folder in ("state", "lists/partial", "cache/archives/partial"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "status").touch()
        (self._home / "sources.list").write_text("\n".join(lines) + "\n")
        (self._home / "apt.conf").write_text(_CONFIGURATION.format(home=self._home))
        return os.environ.get("KERNRIG_MIRROR", "")

    def _hold_kernels(self) -> bool:
        try:
            return bool(self.names("linux-image-"))
        except KernrigError:
            return False

    def _has_lists(self) -> bool:
        return any((self._home / "lists").glob("*_Packages*"))

    def _read_stamp(self) -> _Stamp:
        try:
            return _Stamp(**json.loads((self._home / "stamp.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return _Stamp("", 0.0, 0.0)

    def _write_stamp(self, stamp: _Stamp) -> None:
        new = self._home / "stamp.json.new"
        new.write_text(json.dumps(asdict(stamp)))
        new.replace(self._home / "stamp.json")

    def _apt(
        self, program: str, *arguments: str, timeout_s: float, what: str, cwd: Path | None = None
    ) -> str:
        command = [program, "-c", str(self._home / "apt.conf"), "-q", *arguments]
        return _run(command, timeout_s=timeout_s, what=what, cwd=cwd)


def _require_space(folder: Path, size: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise HostError(
            f"not enough space for {what} in {folder}: {free / 1e6:.0f} MB free, {size / 1e6:.0f} MB needed",
            hint="free some space (`kernrig clean` shows what the cache holds), or set KERNRIG_CACHE to a "
            "directory on another disk",
        )


def _run(command: Sequence[str], *, timeout_s: float, what: str, cwd: Path | None = None) -> str:
    """Run apt and return its output. It dies with us, and speaks English."""
    if shutil.which(command[0]) is None:
        raise HostError(
            f"{what} failed: there is no {command[0]} on this host", hint="kernrig needs a Debian host"
        )
    guard = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    try:
        done = subprocess.run(
            [*guard, *command],
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KernrigError(
            f"{what} took more than {timeout_s:.0f} s", hint="is the mirror reachable?"
        ) from error
    if done.returncode != 0:
        told = [
            line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))
        ] or done.stderr.splitlines()
        reason = "; ".join(line.strip() for line in told[:2]) or f"exit status {done.returncode}"
        raise KernrigError(
            f"{what} failed: {reason}",
            hint="is the mirror reachable? KERNRIG_MIRROR names another",
        )
    return done.stdout
