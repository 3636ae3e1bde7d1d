# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.guest import modules
from harness.guest.waiting import WaitTimeout

PROC_MODULES = """\
kr_ops 24576 1 kr_user, Live 0xffffffffc0a5c000 (OE)
veth 45056 0 - Live 0xffffffffc0a4c000
nf_conntrack 204800 2 nf_nat,xt_state, Unloading 0xffffffffc09f8000 (-)
fixed 16384 0 [permanent], Live 0xffffffffc0000000
forever 16384 - - Live 0xffffffffc0000000
"""


def test_each_line_becomes_a_module() -> None:
    ours, veth, conntrack, fixed, forever = modules.parse_modules(PROC_MODULES)
    assert ours == modules.Module("kr_ops", 24576, 1, ("kr_user",), "Live", "OE")
    assert veth == modules.Module("veth", 45056, 0, (), "Live", "")
    assert (conntrack.used_by, conntrack.state) == (("nf_nat", "xt_state"), "Unloading")
    assert fixed.used_by == ("[permanent]",)
    assert forever.refcount is None


def test_a_module_is_found_by_its_file_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = tmp_path / "modules"
    listing.write_text(PROC_MODULES)
    monkeypatch.setattr(modules, "PROC_MODULES", listing)
    found = modules.find("kr-ops")
    assert found is not None
    assert found.name == "kr_ops"
    assert modules.find("absent") is None


def test_a_kernel_without_module_support_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(modules, "PROC_MODULES", tmp_path / "absent")
    assert modules.loaded() == []


def test_state_and_reference_count_come_from_sysfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kr_ops").mkdir()
    (tmp_path / "kr_ops/initstate").write_text("live\n")
    (tmp_path / "kr_ops/refcnt").write_text("3\n")
    monkeypatch.setattr(modules, "SYS_MODULE", tmp_path)
    assert modules.state("kr-ops") == "live"
    assert modules.refcount("kr-ops") == 3
    assert modules.state("absent") is None
    with pytest.raises(KernrigError, match="absent: it is not loaded"):
        modules.refcount("absent")


def test_our_modules_lie_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kr_ops.ko").touch()
    monkeypatch.setenv("KERNRIG_MODULES", str(tmp_path))
    assert modules.path_of("kr_ops") == tmp_path / "kr_ops.ko"
    with pytest.raises(KernrigError, match=r"there are: kr_ops"):
        modules.path_of("kr_nothing")
    monkeypatch.delenv("KERNRIG_MODULES")
    assert modules.directory() == Path("/opt/kernrig/modules")


def test_a_refused_unload_is_the_kernels_errno() -> None:
    # ENOENT as root, EPERM otherwise, ENOSYS from a kernel without modules: all from the system call itself.
    with pytest.raises(OSError, match="delete_module") as caught:
        modules.unload("no_such_module_at_all")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM, errno.ENOSYS)


def test_a_load_of_a_file_that_is_no_module_is_the_kernels_errno(tmp_path: Path) -> None:
    (tmp_path / "fake.ko").write_bytes(b"not an ELF file")
    with pytest.raises(OSError, match="finit_module") as caught:
        modules.load(tmp_path / "fake.ko")
    assert caught.value.errno in (errno.ENOEXEC, errno.EPERM, errno.ENOSYS)


def test_unloading_waits_for_the_last_user(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EWOULDBLOCK, errno.EWOULDBLOCK, 0]

    def unload(name: str) -> None:
        if code := answers.pop(0):
            raise OSError(code, "delete_module")

    monkeypatch.setattr(modules, "unload", unload)
    modules.unload_when_unused("kr_ops", timeout=1)
    assert answers == []


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.EWOULDBLOCK, WaitTimeout), (errno.ENOENT, FileNotFoundError)]
)
def test_unloading_gives_up(monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]) -> None:
    def unload(name: str) -> None:
        raise OSError(code, "delete_module")

    monkeypatch.setattr(modules, "unload", unload)
    with pytest.raises(expected):
        modules.unload_when_unused("kr_ops", timeout=0.01)
