# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness import bootstrap, host
from harness.errors import HostError

ROOT = Path(__file__).resolve().parents[2]
BOOKWORM = host.Distribution("debian", "12", "bookworm")
TRIXIE = host.Distribution("debian", "13", "trixie")
MIRROR = "http://mirror.example/debian/"


def source(
    release: str, *, uri: str = MIRROR, origin: str = "Debian", label: str = "Debian"
) -> host.AptSource:
    return host.AptSource(uri, release, origin, label, release if origin else "")


class TestPlan:
    @pytest.fixture(autouse=True)
    def _host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KERNRIG_MIRROR", raising=False)
        monkeypatch.setattr(host, "distribution", lambda: BOOKWORM)
        monkeypatch.setattr(host, "apt_sources", lambda: [source("bookworm"), source("bookworm-updates")])
        monkeypatch.setattr(bootstrap, "apt_candidate", lambda _package: (7, 2))

    def test_ordinary_packages_come_from_the_hosts_own_sources(self) -> None:
        plan = bootstrap.install_plan(["clang", "kmod"], qemu=False)
        assert "install -y --no-install-recommends clang kmod\n" in plan
        assert "backports" not in plan

    def test_debian_12_gets_qemu_from_backports_through_private_sources(self) -> None:
        plan = bootstrap.install_plan([], qemu=True)
        assert f"{MIRROR} bookworm-backports main" in plan
        assert "Dir::Etc::SourceList=" in plan
        assert "Dir::State::Lists=" in plan
        assert "-t bookworm-backports install -y --no-install-recommends qemu-system-x86\n" in plan
        assert "/etc/apt" not in plan

    def test_debian_12_whose_apt_already_offers_a_new_one_uses_that(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bootstrap, "apt_candidate", lambda _package: (10, 0, 2))
        assert "backports" not in bootstrap.install_plan([], qemu=True)

    def test_debian_13_gets_everything_from_its_own_sources(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "distribution", lambda: TRIXIE)
        plan = bootstrap.install_plan(["clang"], qemu=True)
        assert "clang qemu-system-x86\n" in plan
        assert "backports" not in plan

    def test_the_scripts_are_valid_shell(self) -> None:
        script = bootstrap.install_plan(["clang"], qemu=True)
        subprocess.run(["sh", "-n", "-c", f"(set -eu\n{script})"], check=True)

    def test_the_mirror_can_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERNRIG_MIRROR", "http://other.example/d")
        assert "http://other.example/d bookworm-backports main" in bootstrap.install_plan([], qemu=True)

    def test_no_mirror_is_an_error_that_names_the_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "apt_sources", list)
        with pytest.raises(HostError, match="no mirror") as caught:
            bootstrap.install_plan([], qemu=True)
        assert "KERNRIG_MIRROR" in str(caught.value)

    def test_another_distribution_is_told_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "distribution", lambda: host.Distribution("fedora", "42", ""))
        with pytest.raises(HostError, match="clang qemu-system-x86") as caught:
            bootstrap.install_plan(["clang"], qemu=True)
        assert "fedora 42" in str(caught.value)


class TestMirror:
    @pytest.fixture(autouse=True)
    def _no_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KERNRIG_MIRROR", raising=False)

    def test_security_and_strangers_are_not_the_archive(self) -> None:
        sources = [
            source("bookworm", uri="http://stranger.example/", origin="Stranger", label="Stranger"),
            source("bookworm", uri="http://security.example/", label="Debian-Security"),
            source("bookworm"),
        ]
        assert host.debian_mirror(sources, "bookworm") == MIRROR

    def test_a_suite_name_in_the_sources_is_matched_by_its_codename(self) -> None:
        named_stable = host.AptSource(MIRROR, "stable", "Debian", "Debian", "trixie")
        assert host.debian_mirror([named_stable], "trixie") == MIRROR

    def test_before_the_first_update_the_address_alone_serves(self) -> None:
        assert host.debian_mirror([source("bookworm", origin="", label="")], "bookworm") == MIRROR

    def test_another_release_is_no_mirror_of_this_one(self) -> None:
        assert host.debian_mirror([source("trixie")], "bookworm") is None


class TestRoot:
    def test_without_root_and_sudo_the_command_is_printed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(host, "which", lambda _command: None)
        with pytest.raises(HostError, match="needs root") as caught:
            bootstrap.as_root("apt-get install clang\n")
        assert "apt-get install clang" in str(caught.value)

    def test_a_failing_command_is_printed_with_its_last_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bootstrap, "root_prefix", list)
        with pytest.raises(HostError, match="status 7") as caught:
            bootstrap.as_root("echo no such package\nexit 7\n")
        assert "    no such package" in str(caught.value)
        assert "as root, run what follows" in str(caught.value)

    def test_it_stops_at_the_first_failure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bootstrap, "root_prefix", list)
        with pytest.raises(HostError):
            bootstrap.as_root(f"false\ntouch {tmp_path}/later\n")
        assert not (tmp_path / "later").exists()


def test_a_program_that_passes_its_deadline_is_killed() -> None:
    status, said = bootstrap.run(["sh", "-c", "echo begun; exec sleep 60"], deadline_s=0.3)
    assert status == 124
    assert "begun" in said


def test_a_program_that_is_not_there_is_a_status_and_no_traceback() -> None:
    assert bootstrap.run(["/nonexistent/program"], deadline_s=1)[0] == 127


class TestEnvironment:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A folder with what the fingerprint is made of, and an environment that looks complete."""
        for name in bootstrap.INPUTS:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        commands = tmp_path / ".venv/bin"
        commands.mkdir(parents=True)
        for name in ("pytest", "ruff", "mypy", "kernrig"):
            (commands / name).touch()
        (commands / "python").symlink_to(sys.executable)
        (commands / "pip").write_text(f"#!{commands}/python\n")
        return tmp_path

    def test_without_a_stamp_nothing_is_believed(self, checkout: Path) -> None:
        assert not bootstrap.environment_is_current(checkout)

    def test_a_stamped_one_is_current(self, checkout: Path) -> None:
        bootstrap.write_stamp(checkout)
        assert bootstrap.environment_is_current(checkout)

    @pytest.mark.parametrize("name", bootstrap.INPUTS)
    def test_a_changed_input_is_noticed(self, checkout: Path, name: str) -> None:
        bootstrap.write_stamp(checkout)
        (checkout / name).write_text("changed")
        assert not bootstrap.environment_is_current(checkout)

    def test_a_removed_command_is_noticed(self, checkout: Path) -> None:
        bootstrap.write_stamp(checkout)
        (checkout / ".venv/bin/mypy").unlink()
        assert not bootstrap.environment_is_current(checkout)

    def test_another_interpreter_is_noticed(self, checkout: Path) -> None:
        bootstrap.write_stamp(checkout)
        python = checkout / ".venv/bin/python"
        python.unlink()
        python.symlink_to("/bin/sh")
        assert not bootstrap.environment_is_current(checkout)

    def test_a_moved_checkout_is_noticed(self, checkout: Path) -> None:
        bootstrap.write_stamp(checkout)
        moved = checkout.rename(checkout.with_name("moved"))
        assert not bootstrap.environment_is_current(moved)

    def test_half_a_stamp_is_none(self, checkout: Path) -> None:
        bootstrap.write_stamp(checkout)
        stamp = bootstrap.stamp_path(checkout)
        stamp.write_text(stamp.read_text()[:20])
        assert not bootstrap.environment_is_current(checkout)

    def test_another_qemu_makes_set_up_look_again(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        qemu = checkout / "qemu"
        qemu.write_text("#!/bin/sh\n")
        qemu.chmod(0o755)
        monkeypatch.setenv("KERNRIG_QEMU", str(qemu))
        monkeypatch.setattr(host, "missing_needs", list)
        bootstrap.write_stamp(checkout)
        assert bootstrap.is_current(checkout)
        qemu.write_text("#!/bin/sh\n# upgraded\n")
        assert not bootstrap.is_current(checkout)
        assert bootstrap.environment_is_current(checkout)

    def test_a_missing_package_makes_set_up_look_again(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bootstrap.write_stamp(checkout)
        monkeypatch.setattr(host, "missing_needs", lambda: [host.NEEDS[0]])
        assert not bootstrap.is_current(checkout)

    def test_a_real_environment_works(self) -> None:
        assert bootstrap.environment_works(Path(sys.prefix))

    def test_one_that_was_interrupted_does_not(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        venv = checkout / ".venv"
        monkeypatch.setattr(bootstrap, "run", lambda *_a, **_k: (0, ""))
        assert bootstrap.environment_works(venv)
        (venv / bootstrap.UNFINISHED).touch()
        assert not bootstrap.environment_works(venv)

    def test_one_copied_from_elsewhere_does_not(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bootstrap, "run", lambda *_a, **_k: (0, ""))
        (checkout / ".venv/bin/pip").write_text("#!/elsewhere/.venv/bin/python\n")
        assert not bootstrap.environment_works(checkout / ".venv")

    def test_one_whose_python_is_gone_does_not(self, checkout: Path) -> None:
        (checkout / ".venv/bin/python").unlink()
        assert not bootstrap.environment_works(checkout / ".venv")

    def test_a_failing_pip_is_reported_with_what_to_type(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bootstrap, "environment_works", lambda _venv: True)
        monkeypatch.setattr(bootstrap, "run", lambda *_a, **_k: (1, "ERROR: no matching distribution"))
        bootstrap.write_stamp(checkout)
        with pytest.raises(HostError, match="no matching distribution") as caught:
            bootstrap.provide_environment(checkout)
        assert "pip install" in str(caught.value)
        assert not bootstrap.environment_is_current(checkout)
        assert not (checkout / ".venv" / bootstrap.UNFINISHED).exists()

    def test_a_killed_pip_leaves_its_mark(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_args: object, **_kwargs: object) -> tuple[int, str]:
            raise KeyboardInterrupt

        monkeypatch.setattr(bootstrap, "environment_works", lambda _venv: True)
        monkeypatch.setattr(bootstrap, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.provide_environment(checkout)
        assert (checkout / ".venv" / bootstrap.UNFINISHED).exists()


def test_a_second_set_up_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    entered = threading.Event()
    monkeypatch.setattr(bootstrap, "say", lambda line: said.set() if "waiting" in line else None)

    def second() -> None:
        with bootstrap.locked(tmp_path / "lock"):
            entered.set()

    thread = threading.Thread(target=second)
    with bootstrap.locked(tmp_path / "lock"):
        thread.start()
        assert said.wait(10)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


def test_it_needs_nothing_but_the_standard_library() -> None:
    """On a fresh machine nothing else is there: -S leaves out the packages of this environment."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import harness.bootstrap"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=True)


def test_modules_beside_it_do_not_pass_for_top_level_ones(tmp_path: Path) -> None:
    """As a script its own folder heads sys.path: harness/ssh.py must not shadow an installed `ssh`."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1]]; sys.path[0] = sys.argv[0].rpartition('/')[0];"
        "runpy.run_path(sys.argv[0], run_name='looked_at'); print(sys.path[0])"
    )
    script = str(ROOT / "harness/bootstrap.py")
    done = subprocess.run(
        [sys.executable, "-c", code, script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(ROOT)
