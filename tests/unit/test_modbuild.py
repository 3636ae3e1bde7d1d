# SPDX-License-Identifier: MIT
from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from harness import btfids, modbuild, toolchain
from harness.errors import KernrigError
from harness.kernels import Headers
from harness.kernels.debian_index import Alternative, Package
from harness.splitbtf import Btf
from tests.unit.test_splitbtf import Entry, raw

LOADER = Path("/lib64/ld-linux-x86-64.so.2")
RELEASE = "6.12.1-test"


def elf(path: Path, sections: dict[str, bytes], symbols: Sequence[tuple[str, str, int, int]] = ()) -> Path:
    """Write a relocatable ELF file; a symbol is (name, section, offset, size)."""
    names = ["", *sections, ".symtab", ".strtab", ".shstrtab"]
    strtab, table = b"\0", bytes(24)
    for name, section, offset, size in symbols:
        table += struct.pack("<IBBHQQ", len(strtab), 1, 0, names.index(section), offset, size)
        strtab += name.encode() + b"\0"
    shstrtab = b"".join(name.encode() + b"\0" for name in names)
    contents = [b"", *sections.values(), table, strtab, shstrtab]
    body, headers = b"", b""
    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        kind = {"": 0, ".symtab": 2, ".strtab": 3, ".shstrtab": 3}.get(name, 1)
        link = names.index(".strtab") if name == ".symtab" else 0
        name_at = shstrtab.index(name.encode() + b"\0") if index else 0
        headers += struct.pack(
            "<IIQQQQIIQQ", name_at, kind, 0, 0, 64 + len(body), len(content), link, 1, 1, 24 if link else 0
        )
        body += content
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(names), len(names) - 1
    )
    path.write_bytes(ident + head + body + headers)
    return path


VMLINUX = raw([(1, "int", 4, [32]), (4, "sock", 4, []), (2, "", 2, [])])
BASE = Btf(VMLINUX)
PUT: Entry = (12, "put", 5, ())
GET: Entry = (12, "get", 5, ())
MODULE_TYPES: list[Entry] = [(4, "obj", 4, ["id", 1, 0]), (13, "", 0, []), PUT, GET]


def module(
    path: Path, *, release: str = RELEASE, ids: bytes | None = None, own_btf: bytes | None = None
) -> Path:
    """A module whose set names get before put, while put has the smaller id and must come first."""
    if own_btf is None:
        own_btf = raw(MODULE_TYPES, BASE)
    content = struct.pack("<IIIIIIII", 0, 1, 0, 5, 0, 2, 0, 0) if ids is None else ids
    return elf(
        path,
        {".modinfo": f"license=GPL\0vermagic={release} SMP\0".encode(), ".BTF": own_btf, ".BTF_ids": content},
        [
            ("__BTF_ID__set8__kfuncs", ".BTF_ids", 0, 24),
            ("__BTF_ID__func__get__12", ".BTF_ids", 8, 4),
            ("__BTF_ID__func__put__34", ".BTF_ids", 16, 4),
            ("__BTF_ID__struct__obj__5", ".BTF_ids", 24, 4),
            ("__BTF_ID__struct__sock__6", ".BTF_ids", 28, 4),
        ],
    )


def section(path: Path, name: str) -> bytes:
    with path.open("rb") as file:
        found = ELFFile(file).get_section_by_name(name)
        assert found is not None
        return bytes(found.data())


def test_ids_are_filled_in_and_sets_sorted(tmp_path: Path) -> None:
    path = module(tmp_path / "kr.ko")
    assert btfids.resolve(path, BASE) == ["get", "put", "obj", "sock"]
    count, flags, *pairs, obj, sock = struct.unpack("<8I", section(path, ".BTF_ids"))
    assert (count, flags, pairs) == (2, 1, [6, 2, 7, 5])
    assert (obj, sock) == (4, 2)


def test_an_id_that_nobody_has_is_named(tmp_path: Path) -> None:
    path = module(tmp_path / "kr.ko", own_btf=raw([], BASE))
    with pytest.raises(KernrigError, match=r"kr\.ko.* func get"):
        btfids.resolve(path, BASE)


def test_a_good_module_passes(tmp_path: Path) -> None:
    path = module(tmp_path / "kr.ko")
    btfids.resolve(path, BASE)
    modbuild.check(path, RELEASE)


def test_a_module_for_another_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match=r"6\.1\.0-other instead of 6\.12\.1-test"):
        modbuild.check(module(tmp_path / "kr.ko", release="6.1.0-other"), RELEASE)


def test_a_module_without_btf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="without BTF"):
        btfids.share(module(tmp_path / "kr.ko", own_btf=b""), BASE)


def test_a_module_with_a_base_of_its_own_is_refused(tmp_path: Path) -> None:
    path = elf(tmp_path / "kr.ko", {".BTF": raw(MODULE_TYPES, BASE), ".BTF.base": VMLINUX})
    with pytest.raises(KernrigError, match="distilled base"):
        btfids.share(path, BASE)


def test_ids_follow_when_repeated_types_are_left_out(tmp_path: Path) -> None:
    functions = [(kind, name, 6, ()) for kind, name, *_ in (PUT, GET)]
    repeats = raw([(4, "sock", 4, []), MODULE_TYPES[0], MODULE_TYPES[1], *functions], BASE)
    # As resolve_btfids left it: the set is sorted, obj and sock are the module's.
    ids = struct.pack("<8I", 2, 1, 7, 5, 8, 2, 5, 4)
    path = module(tmp_path / "kr.ko", own_btf=repeats, ids=ids)
    assert btfids.share(path, BASE) == 1
    assert struct.unpack("<8I", section(path, ".BTF_ids")) == (2, 1, 6, 5, 7, 2, 4, 2)
    assert Btf(section(path, ".BTF"), BASE).named == Btf(raw(MODULE_TYPES, BASE), BASE).named
    assert btfids.share(path, BASE) == 0


def test_a_module_with_empty_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="not filled in"):
        modbuild.check(module(tmp_path / "kr.ko", ids=bytes(32)), RELEASE)


def test_a_file_that_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kr.ko").write_text("text")
    with pytest.raises(KernrigError, match="no kernel module"):
        modbuild.check(tmp_path / "kr.ko", RELEASE)


def unpacked_headers(root: Path) -> Headers:
    """Headers as Debian's packages unpack: absolute include, kbuild's tools behind a link."""
    build, common = root / f"usr/src/linux-headers-{RELEASE}", root / "usr/src/linux-headers-6.12.1-common"
    for folder in (build / "include/config", common, root / "usr/lib/linux-kbuild-6.12.1/scripts/basic"):
        folder.mkdir(parents=True)
    (root / "usr/lib/linux-kbuild-6.12.1/tools").mkdir()
    (root / "usr/lib/linux-kbuild-6.12.1/scripts/basic/fixdep").write_text("program")
    (build / "Makefile").write_text(f"KBUILD_OUTPUT=/usr/src/x\ninclude /usr/src/{common.name}/Makefile\n")
    (build / ".config").write_text("CONFIG_MODULES=y\n")
    (common / "Makefile").write_text("")
    (build / "scripts").symlink_to("../../lib/linux-kbuild-6.12.1/scripts")
    (build / "tools").symlink_to("../../lib/linux-kbuild-6.12.1/tools")
    return Headers(root, build, RELEASE)


def test_the_mirror_copies_programs_and_links_the_rest(tmp_path: Path) -> None:
    headers = unpacked_headers(tmp_path / "headers")
    btf_file = tmp_path / "vmlinux.btf"
    btf_file.write_bytes(VMLINUX)
    build = tmp_path / "build"
    modbuild.mirror(headers, build, btf_file)
    (build / "scripts/basic/fixdep").write_text("wrapped")
    assert (headers.build / "scripts/basic/fixdep").read_text() == "program"
    assert (build / ".config").read_text() == "CONFIG_MODULES=y\n"
    assert not (build / "Makefile").exists()
    assert (build / "vmlinux").read_bytes() == VMLINUX


def test_the_headers_own_vmlinux_wins(tmp_path: Path) -> None:
    headers = unpacked_headers(tmp_path / "headers")
    (headers.build / "vmlinux").write_text("theirs")
    modbuild.mirror(headers, tmp_path / "build", tmp_path / "none.btf")
    assert (tmp_path / "build/vmlinux").read_text() == "theirs"


def test_headers_without_kbuild_are_refused(tmp_path: Path) -> None:
    headers = unpacked_headers(tmp_path / "headers")
    shutil.rmtree(tmp_path / "headers/usr/lib")
    with pytest.raises(KernrigError, match="without linux-kbuild"):
        modbuild.mirror(headers, tmp_path / "build", tmp_path / "none.btf")


def test_the_shared_makefile_is_found_below_the_root(tmp_path: Path) -> None:
    headers = unpacked_headers(tmp_path)
    assert modbuild.shared_makefile(headers) == tmp_path / "usr/src/linux-headers-6.12.1-common/Makefile"
    (headers.build / "Makefile").write_text("all:\n")
    with pytest.raises(KernrigError, match="unknown way"):
        modbuild.shared_makefile(headers)


def test_a_failed_build_shows_the_end_of_its_output() -> None:
    script = "print(*range(100), sep=chr(10)); print('kr_ops.c:7: error'); raise SystemExit(2)"
    with pytest.raises(KernrigError) as caught:
        modbuild._run([sys.executable, "-c", script], {}, what="building")
    assert "status 2" in caught.value.what
    assert caught.value.what.endswith("kr_ops.c:7: error")
    assert "\n  50\n" not in caught.value.what


def test_a_build_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modbuild, "_BUILD_TIMEOUT_S", 1.0)
    pids = tmp_path / "pid"
    with pytest.raises(KernrigError, match="more than 1 s"):
        modbuild._run(["/bin/sh", "-c", f"sleep 60 & echo $! > {pids}; wait"], {}, what="building")
    child = Path("/proc", pids.read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A root with this host's own loader and C library."""
    if not LOADER.exists():
        pytest.skip(f"no {LOADER} on this host")
    libraries = tmp_path / "at first/root/usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    shutil.copy(LOADER.resolve(), libraries / LOADER.name)
    for library in LOADER.resolve().parent.glob("lib*.so*"):
        if library.name.startswith(("libc.so", "libselinux", "libpcre2-8")):
            shutil.copy(library, libraries / library.name)
    return tmp_path / "at first/root"


def test_a_wrapped_program_runs_through_the_given_loader(runtime: Path, tmp_path: Path) -> None:
    tools = runtime.parent / "tools"
    tools.mkdir()
    shutil.copy(shutil.which("env") or "/usr/bin/env", tools / "tool")
    (tools / "script").write_text("#!/bin/sh\n")
    assert toolchain.wrap_programs(tools, runtime) == [tools / "tool"]
    assert toolchain.wrap_programs(tools, runtime) == []
    # Entries of the cache are made in one place and used in another.
    moved = runtime.parent.rename(tmp_path / "moved there")
    shown = subprocess.run(
        [moved / "tools/tool", "printf", "<%s>", "a b", "$c"], capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stdout) == (0, "<a b><$c>")
    (moved / "root/usr/lib/x86_64-linux-gnu" / LOADER.name).unlink()
    assert subprocess.run([moved / "tools/tool", "true"], capture_output=True, check=False).returncode != 0


def test_wrapping_without_a_loader_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="no dynamic loader"):
        toolchain.wrap_programs(tmp_path, tmp_path)


def package(name: str, version: str, suite: str, *needs: str) -> Package:
    return Package(name, version, (suite,), tuple((Alternative(each),) for each in needs), 1, "0" * 64)


ARCHIVE = (
    package("gcc-14", "14.2", "trixie", "gcc-14-x86-64-linux-gnu", "binutils"),
    package("gcc-14-x86-64-linux-gnu", "14.2", "trixie", "cpp-14", "libgcc-14-dev", "libc6"),
    package("gcc-12", "12.2", "bookworm", "cpp-12"),
    package("cpp-14", "14.2", "trixie", "libisl23", "virtual"),
    package("libisl23", "0.27", "trixie"),
    package("libgcc-14-dev", "14.2", "trixie"),
    package("libc6", "2.41-12", "trixie"),
    package("libc6", "2.41-12+deb13u1", "trixie-security"),
    package("libc6", "2.43-7", "sid"),
    package("pahole", "1.30", "trixie", "libc6"),
)


def offered(names: Iterable[str]) -> list[Package]:
    wanted = set(names)
    return [each for each in ARCHIVE if each.name in wanted]


def test_a_toolchain_is_the_newest_of_its_release_and_what_it_needs() -> None:
    found = toolchain.toolchain_packages(offered, "trixie", 14)
    assert [(each.name, each.version) for each in found] == [
        ("cpp-14", "14.2"),
        ("gcc-14-x86-64-linux-gnu", "14.2"),
        ("libc6", "2.41-12+deb13u1"),
        ("libisl23", "0.27"),
        ("pahole", "1.30"),
    ]


def test_before_trixie_the_compiler_is_in_its_own_package() -> None:
    assert "gcc-12" in {each.name for each in toolchain.toolchain_packages(offered, "bookworm", 12)}


def test_a_release_without_the_compiler_says_so() -> None:
    with pytest.raises(KernrigError, match="bookworm has no gcc-14"):
        toolchain.toolchain_packages(offered, "bookworm", 14)


def test_the_sources_are_there() -> None:
    assert {path.name for path in modbuild._sources(modbuild.SOURCES)} >= {"Kbuild", "kr_ops.c", "kr_kptr.c"}
