# SPDX-License-Identifier: MIT
"""Debian's package lists: which kernels they offer, and which one a name stands for."""

from __future__ import annotations

import pytest

from harness.errors import KernrigError
from harness.kernels.apt import SECURITY_SUITES, SUITES, Mirror, parse_index_targets
from harness.kernels.debian_index import Candidate, Index, parse, select

ALL_SUITES = (*SUITES, *SECURITY_SUITES)


class Lists:
    """Package lists written by hand, in the two forms that apt-cache prints."""

    def __init__(self) -> None:
        self.records = ""
        self.madison = ""

    def add(self, name: str, version: str, suites: str, depends: str = "") -> None:
        sha256 = f"{abs(hash((name, version))):064x}"[:64]
        self.records += f"Package: {name}\nSource: linux-signed-amd64 ({version})\nVersion: {version}\n"
        self.records += f"Architecture: amd64\nDepends: {depends}\n" if depends else "Architecture: amd64\n"
        self.records += f"Filename: pool/{name}_{version}_amd64.deb\nSize: 1000\nSHA256: {sha256}\n"
        self.records += "Description: Linux\n the kernel\n\n"
        for suite in suites.split():
            self.madison += f"{name} | {version} | http://mirror/debian {suite}/main amd64 Packages\n"

    def whole(self, release: str, version: str, suites: str) -> None:
        """A kernel as it was up to 6.18."""
        self.add(
            f"linux-image-{release}", version, suites, "kmod, linux-base (>= 4.3~), dracut | initramfs-tools"
        )

    def split(self, release: str, version: str, suites: str, *, modules: bool = True) -> None:
        """A kernel as it is from 6.19 on."""
        exact = f"(= {version})"
        self.add(
            f"linux-image-{release}",
            version,
            suites,
            f"dracut | linux-initramfs-tool, linux-base-{release} {exact}, linux-binary-{release} {exact}, "
            f"linux-modules-{release} {exact}",
        )
        self.add(f"linux-binary-{release}", version, suites, f"linux-base-{release} {exact}")
        if modules:
            self.add(f"linux-modules-{release}", version, suites, f"kmod, linux-base-{release} {exact}")
            self.add(f"linux-base-{release}", version, suites, "linux-base (>= 4.12~)")


@pytest.fixture
def lists() -> Lists:
    lists = Lists()
    lists.whole("6.1.0-47-cloud-amd64", "6.1.170-3", "bookworm")
    lists.whole("6.1.0-50-cloud-amd64", "6.1.176-1", "bookworm bookworm-security")
    for version, image, suites in (
        ("6.1.170-1", "6.1.0-47-cloud-amd64 (= 6.1.170-3)", "bookworm"),
        ("6.1.176-1", "6.1.0-50-cloud-amd64 (= 6.1.176-1)", "bookworm bookworm-security"),
        ("6.12.107-1", "6.12.107+deb13-cloud-amd64 (= 6.12.107-1)", "trixie"),
        ("7.2.12-1~bpo13+1", "7.2.12+deb13-cloud-amd64 (= 7.2.12-1~bpo13+1)", "trixie-backports"),
        ("7.2.13-1", "7.2.13+deb14-cloud-amd64 (= 7.2.13-1)", "sid"),
    ):
        lists.add("linux-image-cloud-amd64", version, suites, f"linux-base, linux-image-{image}")
    lists.whole("6.12.95+deb12-cloud-amd64", "6.12.95-1~bpo12+1", "bookworm-backports")
    lists.whole("6.12.107+deb13-cloud-amd64", "6.12.107-1", "trixie trixie-security")
    lists.whole("6.12.107+deb12-cloud-amd64", "6.12.107-1~deb12u1", "bookworm-security")
    lists.add(
        "linux-image-6.12-cloud-amd64",
        "6.12.107-1~deb12u1",
        "bookworm-security",
        "linux-image-6.12.107+deb12-cloud-amd64 (= 6.12.107-1~deb12u1)",
    )
    lists.add("linux-image-6.12.107+deb13-cloud-amd64-unsigned", "6.12.107-1", "trixie", "kmod")
    lists.add("linux-image-6.12.107+deb13-cloud-amd64-dbg", "6.12.107-1", "trixie")
    lists.add("linux-image-6.12.107+deb13-amd64", "6.12.107-1", "trixie", "kmod")
    lists.add(
        "linux-image-6.18.15+deb13-cloud-amd64",
        "6.18.15-1~bpo13+1",
        "trixie-backports",
        "kmod, linux-base-6.18.15+deb13-cloud-amd64 (= 6.18.15-1~bpo13+1)",
    )
    lists.split("7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+1", "trixie-backports", modules=False)
    lists.split("7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1", "trixie-backports")
    lists.split("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1", "trixie-backports")
    lists.split("7.2.13+deb14-cloud-amd64", "7.2.13-1", "sid")
    lists.split("7.3-cloud-amd64", "7.3~rc7-1~exp1", "experimental")
    return lists


def index_of(lists: Lists) -> Index:
    return Index(parse(lists.records, lists.madison))


@pytest.fixture
def index(lists: Lists) -> Index:
    return index_of(lists)


@pytest.fixture
def candidates(index: Index) -> list[Candidate]:
    return index.candidates


def test_only_real_images_of_the_flavour_are_candidates(candidates: list[Candidate]) -> None:
    assert [(each.release, each.version) for each in candidates] == [
        ("6.1.0-47-cloud-amd64", "6.1.170-3"),
        ("6.1.0-50-cloud-amd64", "6.1.176-1"),
        ("6.12.95+deb12-cloud-amd64", "6.12.95-1~bpo12+1"),
        ("6.12.107+deb12-cloud-amd64", "6.12.107-1~deb12u1"),
        ("6.12.107+deb13-cloud-amd64", "6.12.107-1"),
        ("6.18.15+deb13-cloud-amd64", "6.18.15-1~bpo13+1"),
        ("7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+1"),
        ("7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1"),
        ("7.2.12+deb13-cloud-amd64", "7.2.12-1~bpo13+1"),
        ("7.2.13+deb14-cloud-amd64", "7.2.13-1"),
        ("7.3-cloud-amd64", "7.3~rc7-1~exp1"),
    ]


def test_suites_come_from_madison(candidates: list[Candidate]) -> None:
    suites = {each.version: each.suites for each in candidates}
    assert suites["6.12.107-1"] == ("trixie", "trixie-security")
    assert suites["7.3~rc7-1~exp1"] == ("experimental",)


def test_a_split_kernel_is_made_of_all_its_packages(index: Index) -> None:
    kernel = select(index, "7.3", ALL_SUITES)
    assert sorted(package.name for package in kernel.packages) == [
        "linux-base-7.3-cloud-amd64",
        "linux-binary-7.3-cloud-amd64",
        "linux-image-7.3-cloud-amd64",
        "linux-modules-7.3-cloud-amd64",
    ]
    assert kernel.size == 4000


def test_a_whole_kernel_is_made_of_one_package(index: Index) -> None:
    assert len(select(index, "6.12", ALL_SUITES).packages) == 1
    assert len(select(index, "6.18", ALL_SUITES).packages) == 1


@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        ("", "6.12.107-1"),
        ("6.1", "6.1.176-1"),
        ("6.12", "6.12.107-1"),
        ("6.12.95", "6.12.95-1~bpo12+1"),
        ("6.12.107-1~deb12u1", "6.12.107-1~deb12u1"),
        # sid has a newer one, but a released suite goes first.
        ("7.2", "7.2.12-1~bpo13+1"),
        ("7.2.13", "7.2.13-1"),
        ("7.2.13-1", "7.2.13-1"),
        ("7.3", "7.3~rc7-1~exp1"),
        ("bookworm", "6.1.176-1"),
        ("trixie-backports", "7.2.12-1~bpo13+1"),
        ("sid", "7.2.13-1"),
    ],
)
def test_a_name_stands_for_one_kernel(index: Index, wanted: str, version: str) -> None:
    assert select(index, wanted, ALL_SUITES).version == version


@pytest.mark.parametrize("wanted", ["6", "6.13", "6.12.1", "6.12.107-2", "7.30", "lenny", "6.1-1", "latest"])
def test_what_matches_nothing_lists_what_there_is(index: Index, wanted: str) -> None:
    with pytest.raises(KernrigError, match=f"no kernel debian:{wanted}") as caught:
        select(index, wanted, ALL_SUITES)
    hint = caught.value.hint or ""
    assert "debian:6.12   6.12.95-1~bpo12+1, 6.12.107-1~deb12u1, 6.12.107-1" in hint
    assert "debian:7.1    incomplete" in hint
    assert "(experimental)" in hint
    assert len(str(caught.value).splitlines()) < 24


def test_a_kernel_without_its_modules_is_incomplete_with_the_reason(index: Index) -> None:
    incomplete = [each for each in index.candidates if each.missing is not None]
    assert [each.series for each in incomplete] == ["7.1"]
    assert incomplete[0].missing is not None
    assert "linux-base-7.1.13+deb13-cloud-amd64 (= 7.1.13-1~bpo13+1)" in incomplete[0].missing
    with pytest.raises(KernrigError, match=r"debian:7\.1 is incomplete: linux-base-7\.1\.13"):
        select(index, "7.1", ALL_SUITES)


def test_an_older_version_of_a_dependency_does_not_complete_a_kernel(lists: Lists) -> None:
    lists.add("linux-modules-7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+0", "trixie-backports")
    lists.add("linux-base-7.1.13+deb13-cloud-amd64", "7.1.13-1~bpo13+1", "trixie-backports")
    with pytest.raises(KernrigError, match=r"linux-modules-7\.1\.13\S+ \(= 7\.1\.13-1~bpo13\+1\)"):
        select(index_of(lists), "7.1", ALL_SUITES)


def test_empty_lists_have_no_kernel() -> None:
    with pytest.raises(KernrigError, match="no kernel debian") as caught:
        select(index_of(Lists()), "", ALL_SUITES)
    assert "the package lists hold no kernel" in str(caught.value)


def test_headers_are_followed_to_common_and_kbuild(lists: Lists) -> None:
    lists.add(
        "linux-headers-6.1.0-50-cloud-amd64",
        "6.1.176-1",
        "bookworm",
        "linux-headers-6.1.0-50-common (= 6.1.176-1), linux-kbuild-6.1 (>= 6.1.176-1), gcc-12",
    )
    lists.add("linux-headers-6.1.0-50-common", "6.1.176-1", "bookworm")
    lists.add("linux-kbuild-6.1", "6.1.170-3", "bookworm", "libc6 (>= 2.34)")
    with pytest.raises(KernrigError, match=r"linux-kbuild-6\.1 \(>= 6\.1\.176-1\)"):
        index_of(lists).headers("6.1.0-50-cloud-amd64", "6.1.176-1")
    lists.add("linux-kbuild-6.1", "6.1.192-1", "bookworm-security", "libc6 (>= 2.34)")
    index = index_of(lists)
    assert [
        (package.name, package.version) for package in index.headers("6.1.0-50-cloud-amd64", "6.1.176-1")
    ] == [
        ("linux-headers-6.1.0-50-cloud-amd64", "6.1.176-1"),
        ("linux-headers-6.1.0-50-common", "6.1.176-1"),
        ("linux-kbuild-6.1", "6.1.192-1"),
    ]
    with pytest.raises(KernrigError, match="is in no suite"):
        index.headers("6.1.0-47-cloud-amd64", "6.1.170-3")


def test_the_mirror_is_the_one_that_the_host_uses_for_debian() -> None:
    text = (
        "nodesource|nodistro|https://vendor/node_20.x/\n"
        "Debian|bookworm|http://near/debian/\n"
        "Debian|bookworm-updates|http://near/debian/\n"
        "Debian-Security|bookworm-security|http://near/security/\n"
        "Debian|trixie|http://far/debian/\n"
    )
    assert parse_index_targets(text) == Mirror("http://near/debian/", "http://near/security/")


def test_before_the_first_update_the_release_name_tells() -> None:
    text = "|nodistro|https://vendor/\n|trixie|http://near/debian/\n|trixie-security|http://near/security/\n"
    assert parse_index_targets(text) == Mirror("http://near/debian/", "http://near/security/")
    assert parse_index_targets("Ubuntu|noble|http://other/ubuntu/\n") is None
    assert parse_index_targets("") is None
