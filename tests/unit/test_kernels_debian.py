# SPDX-License-Identifier: MIT
"""Kernels from Debian: packages become an entry once, names are remembered, failures leave nothing.

Only apt's network is replaced here; packages are real .deb files, unpacked and indexed by the real programs.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.errors import KernrigError
from harness.kernels import available, debian, resolve
from harness.kernels.apt import PrivateApt
from tests.unit.bzimage import BTF, CONFIG, bzimage, elf

MODULE = elf({".modinfo": b"license=GPL\0name=veth\0"})


class Archive:
    """A small Debian archive in place of the mirror: it answers what PrivateApt would ask apt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages: dict[tuple[str, str], tuple[str, str, Path]] = {}
        self.calls: list[str] = []
        self.online = True

    def add(self, name: str, version: str, suite: str, files: dict[str, bytes], depends: str = "") -> None:
        root = self.folder / f"{name}_{version}"
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: me <me@here>\n"
        control += (f"Depends: {depends}\n" if depends else "") + "Description: test\n"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN" / "control").write_text(control)
        deb = root.parent / f"{name}_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", "-Znone", str(root), str(deb)], check=True, capture_output=True)
        sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
        record = control + f"Size: {deb.stat().st_size}\nSHA256: {sha256}\n\n"
        self.packages[name, version] = (suite, record, deb)

    def whole(self, release: str, version: str, suite: str) -> None:
        modules = f"usr/lib/modules/{release}"
        files = {
            f"boot/vmlinuz-{release}": bzimage(gzip.compress(elf({".BTF": BTF})), banner=f"{release} (x) #1"),
            f"boot/config-{release}": CONFIG.encode(),
            f"{modules}/kernel/drivers/net/veth.ko": MODULE,
            f"{modules}/modules.order": b"kernel/drivers/net/veth.ko\n",
            f"{modules}/modules.builtin": b"",
        }
        self.add(f"linux-image-{release}", version, suite, files)
        self.add("linux-image-cloud-amd64", version, suite, {}, f"linux-image-{release} (= {version})")

    def split(self, release: str, version: str, suite: str) -> None:
        modules = f"usr/lib/modules/{release}"
        vmlinuz = bzimage(gzip.compress(elf({".BTF": BTF})), banner=f"{release} (x) #1")
        parts = {
            "base": {f"{modules}/config": CONFIG.encode(), f"{modules}/modules.builtin": b""},
            "binary": {f"{modules}/vmlinuz": vmlinuz},
            "modules": {f"{modules}/kernel/drivers/net/veth.ko": MODULE},
        }
        for kind, files in parts.items():
            self.add(f"linux-{kind}-{release}", version, suite, files)
        depends = ", ".join(f"linux-{kind}-{release} (= {version})" for kind in parts)
        self.add(f"linux-image-{release}", version, suite, {}, depends)

    def ensure_lists(self, apt: PrivateApt, *, max_age_s: float = 0.0) -> None:
        self.calls.append("lists")
        if not self.online:
            raise KernrigError("fetching Debian's package lists failed: no network")

    def names(self, apt: PrivateApt, prefix: str) -> list[str]:
        return sorted({name for name, _ in self.packages if name.startswith(prefix)})

    def records(self, apt: PrivateApt, names: Iterable[str]) -> tuple[str, str]:
        wanted = [(key, each) for key, each in self.packages.items() if key[0] in set(names)]
        madison = [
            f"{name} | {version} | http://mirror {each[0]}/main amd64 Packages"
            for (name, version), each in wanted
        ]
        return "".join(each[1] for _, each in wanted), "\n".join(madison)

    def download(
        self, apt: PrivateApt, packages: Iterable[tuple[str, str]], folder: Path, *, size: int
    ) -> list[Path]:
        self.calls.append("download")
        for key in packages:
            deb = self.packages[key][2]
            (folder / deb.name).write_bytes(deb.read_bytes())
        return sorted(folder.glob("*.deb"))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive(tmp_path / "archive")
    archive.whole("6.12.107+deb13-cloud-amd64", "6.12.107-1", "trixie")
    archive.split("7.3-cloud-amd64", "7.3~rc7-1~exp1", "experimental")
    for name in ("ensure_lists", "names", "records", "download"):
        replacement = getattr(archive, name)
        monkeypatch.setattr(
            PrivateApt, name, lambda apt, *args, _do=replacement, **options: _do(apt, *args, **options)
        )
    return archive


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def age_names(cache: Cache, monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    later = time.time() + by_s
    monkeypatch.setattr("harness.kernels.stored.time.time", lambda: later)


def leftovers(cache: Cache) -> list[str]:
    return [each.name for each in cache.root.rglob(".new-*")]


@pytest.mark.parametrize(
    ("name", "release"), [("debian", "6.12.107+deb13-cloud-amd64"), ("debian:7.3", "7.3-cloud-amd64")]
)
def test_packages_of_either_layout_become_a_kernel(
    archive: Archive, cache: Cache, name: str, release: str
) -> None:
    kernel = resolve(name, cache=cache)
    assert (kernel.name, kernel.release) == (name, release)
    assert kernel.btf.read_bytes() == BTF
    assert kernel.config.enabled("CONFIG_VETH")
    assert kernel.modules is not None
    assert "kernel/drivers/net/veth.ko:" in (kernel.modules / "modules.dep").read_text()
    assert kernel.provenance.source == "debian"
    assert kernel.provenance.sha256 == hashlib.sha256(kernel.vmlinuz.read_bytes()).hexdigest()
    entry = kernel.vmlinuz.parent
    assert sorted(path.name for path in entry.iterdir()) == [
        "config",
        "meta.json",
        "provenance.json",
        "root",
        "vmlinux.btf",
        "vmlinuz",
    ]


def test_a_known_name_asks_apt_nothing(archive: Archive, cache: Cache) -> None:
    first = resolve("debian:6.12", cache=cache)
    archive.calls.clear()
    assert resolve("debian:6.12", cache=cache) == first
    assert archive.calls == []


def test_two_names_of_one_kernel_share_what_was_fetched(archive: Archive, cache: Cache) -> None:
    first = resolve("debian", cache=cache)
    second = resolve("debian:6.12.107-1", cache=cache)
    assert second.vmlinuz == first.vmlinuz
    assert archive.calls.count("download") == 1


def test_a_name_is_looked_up_again_after_a_day(
    archive: Archive, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve("debian:6.12", cache=cache)
    resolve("debian:6.12.107-1", cache=cache)
    archive.whole("6.12.108+deb13-cloud-amd64", "6.12.108-1", "trixie")
    assert resolve("debian:6.12", cache=cache).provenance.version == "6.12.107-1"
    age_names(cache, monkeypatch, 25 * 3600)
    assert resolve("debian:6.12", cache=cache).provenance.version == "6.12.108-1"
    archive.calls.clear()
    assert resolve("debian:6.12.107-1", cache=cache).provenance.version == "6.12.107-1"
    assert archive.calls == [], "an exact version never changes"


def test_refresh_looks_it_up_at_once(archive: Archive, cache: Cache) -> None:
    resolve("debian", cache=cache)
    archive.whole("6.12.108+deb13-cloud-amd64", "6.12.108-1", "trixie")
    assert resolve("debian", cache=cache, refresh=True).provenance.version == "6.12.108-1"
    assert resolve("debian", cache=cache).provenance.version == "6.12.108-1"


def test_without_a_network_the_last_answer_serves(
    archive: Archive, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve("debian", cache=cache)
    archive.online = False
    age_names(cache, monkeypatch, 25 * 3600)
    said: list[str] = []
    assert resolve("debian", cache=cache, say=said.append).provenance.version == "6.12.107-1"
    assert any("no network" in text and "stood for before" in text for text in said)
    with pytest.raises(KernrigError, match="no network"):
        resolve("debian:7.3", cache=cache)


def test_a_damaged_entry_is_fetched_again(archive: Archive, cache: Cache) -> None:
    first = resolve("debian", cache=cache)
    first.vmlinuz.write_bytes(first.vmlinuz.read_bytes()[:-7])
    said: list[str] = []
    again = resolve("debian", cache=cache, say=said.append)
    assert again == first
    assert hashlib.sha256(again.vmlinuz.read_bytes()).hexdigest() == first.provenance.sha256
    assert any("is damaged (vmlinuz has" in text for text in said)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), KernrigError("the mirror went away")], ids=repr)
def test_an_interrupted_download_leaves_nothing(
    archive: Archive, cache: Cache, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def interrupted(apt: PrivateApt, packages: object, folder: Path, *, size: int) -> list[Path]:
        (folder / "half.deb").write_bytes(b"!<arch>")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PrivateApt, "download", interrupted)
        with pytest.raises(type(error)):
            resolve("debian", cache=cache)
    assert leftovers(cache) == []
    assert [each.kind for each in cache.entries()] == ["state"]
    assert resolve("debian", cache=cache).release == "6.12.107+deb13-cloud-amd64"


def test_a_broken_package_is_named(archive: Archive, cache: Cache) -> None:
    archive.packages["linux-image-6.12.107+deb13-cloud-amd64", "6.12.107-1"][2].write_bytes(
        b"!<arch>\nrubbish"
    )
    with pytest.raises(KernrigError, match="cannot be unpacked"):
        resolve("debian", cache=cache)
    assert leftovers(cache) == []


def test_packages_without_modules_are_never_half_used(archive: Archive, cache: Cache) -> None:
    release = "6.12.109+deb13-cloud-amd64"
    archive.add(f"linux-image-{release}", "6.12.109-1", "trixie", {f"boot/config-{release}": b""})
    with pytest.raises(KernrigError, match="hold no bzImage"):
        resolve("debian:6.12.109", cache=cache)
    assert leftovers(cache) == []


def test_the_list_says_what_is_fetched_and_what_is_incomplete(archive: Archive, cache: Cache) -> None:
    archive.add("linux-image-7.1-cloud-amd64", "7.1-1", "sid", {}, "linux-modules-7.1-cloud-amd64 (= 7.1-1)")
    resolve("debian:7.3", cache=cache)
    told = {each.name: each for each in available(cache)}
    assert list(told) == ["debian:6.12.107-1", "debian:7.1-1", "debian:7.3~rc7-1~exp1"]
    assert [each.fetched for each in told.values()] == [False, False, True]
    assert "linux-modules-7.1-cloud-amd64" in (told["debian:7.1-1"].incomplete or "")
    assert told["debian:7.3~rc7-1~exp1"].suites == ("experimental",)


def test_headers_are_unpacked_as_they_are(archive: Archive, cache: Cache) -> None:
    kernel = resolve("debian", cache=cache)
    with pytest.raises(KernrigError, match=r"no headers for the kernel 6\.12\.107"):
        kernel.headers(cache)
    name = f"linux-headers-{kernel.release}"
    files = {
        f"usr/src/{name}/.config": b"",
        f"usr/src/{name}/Makefile": b"include /usr/src/common/Makefile\n",
    }
    archive.add(name, "6.12.107-1", "trixie", files, "linux-kbuild-6.12.107+deb13, gcc-14")
    archive.add(
        "linux-kbuild-6.12.107+deb13", "6.12.107-1", "trixie", {"usr/lib/linux-kbuild-6.12/tool": b"#!"}
    )
    headers = kernel.headers(cache)
    assert headers.build == headers.root / "usr" / "src" / name
    assert (headers.build / "Makefile").read_text() == "include /usr/src/common/Makefile\n"
    assert (headers.root / "usr/lib/linux-kbuild-6.12/tool").exists()
    archive.calls.clear()
    assert kernel.headers(cache) == headers
    assert archive.calls == []


def test_names_of_ours_are_told_from_paths() -> None:
    assert debian.is_name("debian") and debian.is_name("debian:6.12")
    assert not debian.is_name("debian/bzImage") and not debian.is_name("debianish:1")
