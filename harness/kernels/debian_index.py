# SPDX-License-Identifier: MIT
"""Which kernels Debian's package lists offer, what each is made of, and which one a name stands for.

Up to 6.18 `linux-image-RELEASE` holds everything; from 6.19 on it is empty and depends on
`linux-binary-RELEASE` (the bzImage), `linux-modules-RELEASE` and `linux-base-RELEASE` (configuration, list of
built-in modules). So dependencies are followed, and a kernel whose dependency is in no list is incomplete.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from debian.deb822 import Packages
from debian.debian_support import Version

from harness.errors import KernrigError

FLAVOUR = "cloud-amd64"
STABLE = "trixie"

META = f"linux-image-{FLAVOUR}"
IMAGE = re.compile(rf"linux-image-(\d[^ ]*-{FLAVOUR})")
_HOLDS_KERNEL = re.compile(r"linux-(base|binary|modules)-\d")
_HOLDS_HEADERS = re.compile(r"linux-(headers|kbuild)-\d")
_SPLIT_FROM_IMAGE = re.compile(r"linux-(binary|modules)-\d")
_UPSTREAM = re.compile(r"\d+(?:\.\d+)*")

_OPERATORS: dict[str, Callable[[Version, Version], bool]] = {
    "=": lambda have, want: have == want,
    ">=": lambda have, want: have >= want,
    "<=": lambda have, want: have <= want,
    ">>": lambda have, want: have > want,
    "<<": lambda have, want: have < want,
}


@dataclass(frozen=True)
class Alternative:
    """One way to satisfy a dependency: a package name, perhaps with an operator and a version."""

    name: str
    operator: str | None = None
    version: str | None = None

    def met_by(self, package: Package) -> bool:
        """Whether `package` satisfies it."""
        if package.name != self.name:
            return False
        if self.operator is None or self.version is None:
            return True
        return _OPERATORS[self.operator](Version(package.version), Version(self.version))

    def __str__(self) -> str:
        return self.name if self.operator is None else f"{self.name} ({self.operator} {self.version})"


@dataclass(frozen=True)
class Package:
    """One version of a binary package: each element of `depends` is a choice of alternatives; `size` in
    bytes."""

    name: str
    version: str
    suites: tuple[str, ...]
    depends: tuple[tuple[Alternative, ...], ...]
    size: int
    sha256: str

    @property
    def file(self) -> str:
        """Checksum and name, as provenance wants them."""
        return f"{self.sha256}  {self.name} {self.version}"


@dataclass(frozen=True)
class Candidate:
    """A kernel in the lists. `packages` are the image and what it needs to be whole; `missing` says what of
    it is in no list, None if nothing is."""

    release: str
    version: str
    suites: tuple[str, ...]
    packages: tuple[Package, ...]
    missing: str | None

    @property
    def upstream(self) -> tuple[int, ...]:
        """The numbers of the upstream version: (6, 12, 107)."""
        match = _UPSTREAM.match(self.version)
        return tuple(int(part) for part in match.group().split(".")) if match else ()

    @property
    def series(self) -> str:
        """The upstream series: 6.12."""
        return ".".join(str(part) for part in self.upstream[:2])

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


class Index:
    """The packages in the lists, found by name and dependency."""

    def __init__(self, packages: Iterable[Package]) -> None:
        self._by_name: dict[str, list[Package]] = defaultdict(list)
        for package in packages:
            self._by_name[package.name].append(package)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All kernels of our flavour, oldest first."""
        found = []
        for name, packages in self._by_name.items():
            if (match := IMAGE.fullmatch(name)) is None:
                continue
            for package in packages:
                if _names_any(package, IMAGE):
                    # Only names the newest of a series (bookworm-security's linux-image-6.12-cloud-amd64).
                    continue
                if _names_any(package, _SPLIT_FROM_IMAGE):
                    parts, missing = self._closure(package, _HOLDS_KERNEL)
                else:
                    # 6.18's depends on a linux-base-RELEASE too, but holds all that we need.
                    parts, missing = (package,), None
                found.append(Candidate(match.group(1), package.version, package.suites, parts, missing))
        return sorted(found, key=lambda each: (Version(each.version), each.release))

    def defaults(self, suite: str) -> list[Candidate]:
        """The kernels that `linux-image-cloud-amd64` stands for in a suite with its security and
        point-release updates, oldest first: a suite may have others (bookworm-security has 6.12)."""
        members = {suite, f"{suite}-security", f"{suite}-updates"}
        found = []
        for package in sorted(self._by_name.get(META, ()), key=lambda each: Version(each.version)):
            if not members & set(package.suites):
                continue
            named = [each for choice in package.depends for each in choice if IMAGE.fullmatch(each.name)]
            found += [
                candidate
                for candidate in self.candidates
                if any(each.met_by(candidate.packages[0]) for each in named)
            ]
        return found

    def headers(self, release: str, version: str) -> tuple[Package, ...]:
        """The packages needed to build modules for it. Raises KernrigError when one is in no list."""
        name = f"linux-headers-{release}"
        for package in self._by_name.get(name, ()):
            if package.version == version:
                parts, missing = self._closure(package, _HOLDS_HEADERS)
                if missing is None:
                    return parts
                raise KernrigError(f"no headers for the kernel {release}: {missing}", hint=_TAKE_NEWER)
        raise KernrigError(
            f"no headers for the kernel {release}: {name} {version} is in no suite", hint=_TAKE_NEWER
        )

    def _closure(self, first: Package, wanted: re.Pattern[str]) -> tuple[tuple[Package, ...], str | None]:
        """`first` and all it depends on, as far as names match `wanted`; and what is missing."""
        parts = [first]
        for package in parts:
            for choice in package.depends:
                if not any(wanted.match(alternative.name) for alternative in choice):
                    continue
                found = self._satisfy(choice)
                if found is None:
                    return tuple(parts), f"{' | '.join(map(str, choice))} is in no suite's package list"
                if found not in parts:
                    parts.append(found)
        return tuple(parts), None

    def _satisfy(self, choice: Sequence[Alternative]) -> Package | None:
        for alternative in choice:
            fitting = [each for each in self._by_name.get(alternative.name, ()) if alternative.met_by(each)]
            if fitting:
                return max(fitting, key=lambda each: Version(each.version))
        return None


_TAKE_NEWER = "Debian drops superseded versions: `kernrig kernel fetch` takes the current one"


def parse(records: str, madison: str) -> list[Package]:
    """The packages in `apt-cache show`'s records, with the suites that `apt-cache madison` names for each."""
    suites: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in madison.splitlines():
        fields = [field.strip() for field in line.split("|")]
        # NAME | VERSION | ADDRESS SUITE/COMPONENT ARCHITECTURE Packages
        if len(fields) == 3 and fields[2].endswith(" Packages"):
            suite = fields[2].split()[-3].rpartition("/")[0]
            if suite not in suites[fields[0], fields[1]]:
                suites[fields[0], fields[1]].append(suite)
    packages: dict[tuple[str, str], Package] = {}
    for record in Packages.iter_paragraphs(records, use_apt_pkg=False):
        key = (record["Package"], record["Version"])
        depends = tuple(
            tuple(_alternative(each) for each in choice) for choice in record.relations["depends"] or ()
        )
        packages[key] = Package(*key, tuple(suites[key]), depends, int(record["Size"]), record["SHA256"])
    return list(packages.values())


def _names_any(package: Package, pattern: re.Pattern[str]) -> bool:
    return any(pattern.match(each.name) for choice in package.depends for each in choice)


def _alternative(relation: object) -> Alternative:
    assert isinstance(relation, dict)
    operator, version = relation.get("version") or (None, None)
    return Alternative(relation["name"], operator, version)


def _tier(suites: Sequence[str]) -> int:
    """Released suites with their updates and backports come before sid, sid before experimental."""
    released = any(suite not in ("sid", "experimental") for suite in suites)
    return 0 if released else 1 if "sid" in suites else 2


def select(index: Index, wanted: str, suites: Sequence[str]) -> Candidate:
    """The kernel that `debian:WANTED` stands for; the empty string is Debian stable's.

    `wanted` is a series or upstream version (`6.12`, `6.12.107`: the newest of it, of released suites if
    they have one), an exact Debian version, or one of `suites` (its default kernel). Raises KernrigError
    when it matches nothing whole, with a list of what there is.
    """
    name = f"debian:{wanted}" if wanted else "debian"
    candidates = index.candidates
    if not wanted or wanted in suites:
        fitting = index.defaults(wanted or STABLE)
    elif re.fullmatch(r"\d+(\.\d+)+", wanted):
        numbers = tuple(int(part) for part in wanted.split("."))
        fitting = [each for each in candidates if each.upstream[: len(numbers)] == numbers]
        # Newest first upstream version (7.3) is released as 7.3~rcN; no zero is ever appended.
        fitting.sort(key=lambda each: (-_tier(each.suites), Version(each.version)))
    else:
        fitting = [each for each in candidates if wanted == each.version]
    whole = [each for each in fitting if each.missing is None]
    if whole:
        return whole[-1]
    if fitting:
        raise KernrigError(
            f"the kernel {name} is incomplete: {fitting[-1].missing}",
            hint=f"take another; these are whole:\n{summary(candidates)}",
        )
    raise KernrigError(f"Debian has no kernel {name}", hint=f"there are:\n{summary(candidates)}")


def summary(candidates: Sequence[Candidate]) -> str:
    """One line per series: the name that selects it, its whole versions, their suites."""
    by_series: dict[tuple[int, ...], list[Candidate]] = defaultdict(list)
    for each in candidates:
        by_series[each.upstream[:2]].append(each)
    lines = []
    for _, members in sorted(by_series.items()):
        whole = [each for each in members if each.missing is None]
        if whole:
            versions = ", ".join(each.version for each in whole[-4:])
            more = f" and {len(whole) - 4} older" if len(whole) > 4 else ""
            suites = ", ".join(dict.fromkeys(suite for each in whole for suite in each.suites))
            lines.append(f"    debian:{members[0].series:6} {versions}{more}  ({suites})")
        else:
            lines.append(
                f"    debian:{members[0].series:6} incomplete: {len(members)} version(s) without modules"
            )
    return "\n".join(lines) or "    nothing (the package lists hold no kernel)"
