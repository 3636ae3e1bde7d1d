# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import doctor, host
from harness.cache import Cache
from harness.doctor import GIB, Report, Row, State
from harness.errors import HostError

MakeQemu = Callable[..., Path]


@pytest.fixture
def make_qemu(tmp_path: Path) -> MakeQemu:
    """Writes a program that answers --version as QEMU does."""

    def make(says: str, *, status: int = 0, name: str = "qemu-system-x86_64") -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
        path.chmod(0o755)
        return path

    return make


class TestQemu:
    @pytest.mark.parametrize(
        ("says", "version"),
        [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", (10, 0, 2)),
            ("QEMU emulator version 11.0.0", (11, 0, 0)),
            ("QEMU emulator version 10.1", (10, 1, 0)),
        ],
    )
    def test_a_new_enough_one_is_taken(
        self, make_qemu: MakeQemu, says: str, version: tuple[int, int, int]
    ) -> None:
        path = make_qemu(says)
        assert host.find_qemu(str(path)) == host.Qemu(path, version)

    def test_debian_12s_own_is_refused_with_the_reason(self, make_qemu: MakeQemu) -> None:
        path = make_qemu("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)")
        with pytest.raises(
            HostError, match=r"is QEMU 7\.2\.22.*needs 10 or newer.*more than one CPU under TCG"
        ):
            host.find_qemu(str(path))

    def test_the_doctor_says_the_same(self, make_qemu: MakeQemu) -> None:
        row = doctor.qemu_row(str(make_qemu("QEMU emulator version 7.2.22")))
        assert row.state is State.MISSING
        assert "under TCG" in row.detail
        assert row.remedy is not None
        assert "make setup" in row.remedy

    def test_another_program_is_no_qemu(self, make_qemu: MakeQemu) -> None:
        with pytest.raises(HostError, match="no QEMU version: bash 5"):
            host.find_qemu(str(make_qemu("bash 5")))

    def test_one_that_fails_is_no_qemu(self, make_qemu: MakeQemu) -> None:
        with pytest.raises(HostError, match="status 3"):
            host.find_qemu(str(make_qemu("QEMU emulator version 10.0.2", status=3)))

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="nowhere is not an executable file"):
            host.find_qemu(str(tmp_path / "nowhere"))

    def test_without_a_setting_it_comes_from_the_path(
        self, make_qemu: MakeQemu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make_qemu("QEMU emulator version 10.0.2")
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin")
        assert host.find_qemu().path == path

    def test_none_in_the_path_points_to_setup(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(HostError, match="in PATH") as caught:
            host.find_qemu()
        assert "make setup" in str(caught.value)


class TestNeeds:
    def test_a_command_is_also_found_in_sbin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "kr-tool").write_text("#!/bin/sh\n")
        (tmp_path / "kr-tool").chmod(0o755)
        monkeypatch.setenv("PATH", "/nonexistent")
        assert host.which("kr-tool") is None
        monkeypatch.setattr(host, "_SBIN", (str(tmp_path),))
        assert host.which("kr-tool") == tmp_path / "kr-tool"

    def test_a_missing_one_names_its_package(self, tmp_path: Path) -> None:
        row = doctor.need_row(host.Need("keyring", "debian-archive-keyring", "why", tmp_path / "none.gpg"))
        assert row.state is State.MISSING
        assert row.remedy is not None
        assert row.remedy.endswith("apt-get install debian-archive-keyring")

    def test_a_present_one_says_where(self, tmp_path: Path) -> None:
        assert doctor.need_row(host.Need("it", "p", "why", tmp_path)) == Row("it", State.OK, str(tmp_path))


class TestRows:
    @pytest.mark.parametrize(
        ("here", "state"),
        [
            (host.Distribution("debian", "12", "bookworm"), State.OK),
            (host.Distribution("debian", "13", "trixie"), State.OK),
            (host.Distribution("debian", "11", "bullseye"), State.WARN),
            (host.Distribution("ubuntu", "24.04", "noble"), State.WARN),
            (host.Distribution("", "", ""), State.WARN),
        ],
    )
    def test_system(self, here: host.Distribution, state: State) -> None:
        assert doctor.system_row(here).state is state

    def test_machine(self) -> None:
        assert doctor.machine_row("x86_64").state is State.OK
        assert doctor.machine_row("aarch64").state is State.MISSING

    def test_python(self) -> None:
        assert doctor.python_row((3, 11, 0)).state is State.OK
        assert doctor.python_row((3, 10, 14)).state is State.MISSING

    @pytest.mark.parametrize(
        ("available", "state"),
        [(GIB // 2, State.MISSING), (2 * GIB, State.WARN), (6 * GIB, State.OK)],
    )
    def test_memory(self, available: int, state: State) -> None:
        assert doctor.memory_row(available, 8 * GIB).state is state

    @pytest.mark.parametrize(
        ("free", "state"), [(GIB, State.MISSING), (4 * GIB, State.WARN), (20 * GIB, State.OK)]
    )
    def test_disk(self, tmp_path: Path, free: int, state: State) -> None:
        row = doctor.disk_row(tmp_path, free)
        assert row.state is state
        assert str(tmp_path) in row.detail

    def test_disk_space_of_a_cache_that_is_not_made_yet(self, tmp_path: Path) -> None:
        assert doctor.existing_parent(tmp_path / "a" / "b") == tmp_path

    def test_mirror(self) -> None:
        assert doctor.mirror_row("http://m.example/debian", None).state is State.OK
        missing = doctor.mirror_row(None, None)
        assert missing.state is State.MISSING
        assert "KERNRIG_MIRROR" in (missing.remedy or "")

    def test_cache_size_is_the_sum_of_its_entries(self, tmp_path: Path) -> None:
        def make(folder: Path) -> None:
            (folder / "blob").write_bytes(b"x" * (1 << 20))

        cache = Cache(tmp_path)
        for key in ("one", "two"):
            cache.build("kernel", key, make)
        row = doctor.cache_row(cache.root, cache.entries())
        assert row.detail == f"2 MiB in {tmp_path} (kernel)"

    def test_no_kvm_is_no_fault(self, tmp_path: Path) -> None:
        row = doctor.kvm_row(tmp_path / "kvm")
        assert row.state is State.OK
        assert "TCG" in row.detail

    def test_kvm_that_may_not_be_opened_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = tmp_path / "kvm"
        device.touch()
        assert doctor.kvm_row(device).state is State.OK
        monkeypatch.setattr(os, "access", lambda *_: False)
        row = doctor.kvm_row(device)
        assert row.state is State.WARN
        assert "usermod" in (row.remedy or "")

    def test_accelerator(self) -> None:
        row = doctor.accelerator_row(lambda: ("tcg", "KVM did not boot"))
        assert row == Row("accelerator", State.OK, "tcg: KVM did not boot")

        def fails() -> tuple[str, str]:
            raise HostError("nothing boots", hint="look at it")

        assert doctor.accelerator_row(fails) == Row(
            "accelerator", State.MISSING, "nothing boots", "look at it"
        )


class TestReport:
    def test_warnings_do_not_fail_it_and_missing_rows_do(self) -> None:
        warned = Report((Row("a", State.OK, "x"), Row("b", State.WARN, "y", "z")))
        assert warned.ok
        assert not Report((*warned.rows, Row("c", State.MISSING, "gone"))).ok

    def test_rendered_rows_line_up_and_the_last_line_sums_up(self) -> None:
        report = Report((Row("qemu", State.MISSING, "too old", "one\ntwo"), Row("a", State.OK, "x")))
        assert doctor.render(report).splitlines() == [
            "missing qemu  too old",
            "              -> one",
            "              two",
            "ok      a     x",
            "missing: qemu",
        ]

    def test_the_accelerator_is_not_tried_while_something_is_missing(self, tmp_path: Path) -> None:
        def boots() -> tuple[str, str]:
            pytest.fail("booted a machine")

        report = doctor.check(qemu=str(tmp_path / "none"), cache=Cache(tmp_path), accelerator=boots)
        assert not report.ok
        assert "accelerator" not in [row.name for row in report.rows]
