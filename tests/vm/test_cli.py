# SPDX-License-Identifier: MIT
"""The `kernrig` command with real machines, as processes of their own, on pipes and on terminals."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.vm.project import children, gone, interrupt, wait_for

KERNRIG = str(Path(sys.executable).with_name("kernrig"))
QEMU = "qemu"
SECONDS = 100


def environment(**more: str) -> dict[str, str]:
    kept = ("KERNRIG_CACHE", "KERNRIG_SLOW")
    mine = {name: value for name, value in os.environ.items() if name in kept or "KERNRIG" not in name}
    return {**mine, "COLUMNS": "100", **more}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory without scenarios."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def kernrig(
    here: Path, *words: str, stdin: str = "", seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KERNRIG, *words],
        cwd=here,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextmanager
def started(here: Path, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command, still running, with a process group of its own; what is left of it is killed at the end."""
    process = subprocess.Popen(
        [KERNRIG, *words],
        cwd=here,
        env=environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        for child in children(process.pid, ""):
            child.kill()
        process.kill()
        process.communicate()


@contextmanager
def terminal(here: Path, *words: str) -> Iterator[pexpect.spawn[str]]:
    """The command on a terminal of 91 columns and 37 lines, at the guest's prompt."""
    child = pexpect.spawn(
        KERNRIG,
        list(words),
        cwd=str(here),
        env=environment(),
        timeout=SECONDS,
        dimensions=(37, 91),
        encoding="utf-8",
    )
    try:
        child.expect_exact("~ # ")
        yield child
    finally:
        child.close(force=True)


def machines(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return children(process.pid, QEMU)


class TestRun:
    def test_the_exit_status_comes_back(self, here: Path) -> None:
        assert kernrig(here, "run", "--", "sh", "-c", "exit 7").returncode == 7

    def test_both_streams_come_back_apart(self, here: Path) -> None:
        ran = kernrig(here, "run", "sh", "-c", "echo out; echo err >&2")
        assert ran.stdout == "out\n"
        assert ran.stderr.endswith("err\n")
        assert ran.returncode == 0

    def test_words_arrive_as_they_are(self, here: Path) -> None:
        words = ["a b", "$HOME", "'", '"', "*", "", "ü"]
        ran = kernrig(here, "run", "--", "printf", "[%s]", *words)
        assert ran.stdout == "".join(f"[{word}]" for word in words)

    def test_it_is_the_guests_kernel_and_time(self, here: Path) -> None:
        ran = kernrig(here, "run", "--", "sh", "-c", "uname -r; date +%s")
        release, seconds = ran.stdout.split()
        assert release != platform.release()
        assert abs(int(seconds) - time.time()) < 60

    def test_standard_input_arrives_whole_and_ends(self, here: Path) -> None:
        text = "".join(f"line {number}\n" for number in range(200_000))
        ran = kernrig(here, "run", "--", "md5sum", stdin=text)
        assert ran.stdout == f"{hashlib.md5(text.encode()).hexdigest()}  -\n"

    def test_much_output_arrives_whole(self, here: Path) -> None:
        ran = kernrig(here, "run", "--", "seq", "300000")
        assert ran.stdout == "".join(f"{number}\n" for number in range(1, 300_001))

    def test_output_comes_while_the_command_runs(self, here: Path) -> None:
        with started(here, "run", "--", "sh", "-c", "echo first; read line; echo $line") as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "first\n"
            process.stdin.write("second\n")
            process.stdin.flush()
            assert process.stdout.readline() == "second\n"
            assert process.wait(SECONDS) == 0

    def test_a_death_by_signal_is_a_shells_status(self, here: Path) -> None:
        assert kernrig(here, "run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15

    def test_a_command_that_is_not_there(self, here: Path) -> None:
        ran = kernrig(here, "run", "nonsense")
        assert ran.returncode == 127
        assert "nonsense: not found" in ran.stderr

    def test_a_reader_that_leaves_ends_it_quietly(self, here: Path) -> None:
        with started(here, "run", "--", "yes") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "y\n"
            process.stdout.close()
            assert process.wait(SECONDS) == 141
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
            process.stdout = None

    def test_without_standard_streams(self, here: Path) -> None:
        words = f"{KERNRIG} run -- sh -c 'cat; exit 9' <&- >&- 2>&-"
        ran = subprocess.run(["sh", "-c", words], cwd=here, env=environment(), timeout=SECONDS, check=False)
        assert ran.returncode == 9

    def test_the_shape_can_be_chosen(self, here: Path) -> None:
        words = ("--cpus", "2", "--append", "kernrig.test=1")
        ran = kernrig(here, "run", *words, "--", "sh", "-c", "nproc; cat /proc/cmdline")
        assert ran.stdout.startswith("2\n")
        assert ran.stdout.endswith(" kernrig.test=1\n")

    def test_the_machine_may_be_booted_from_cold(self, here: Path) -> None:
        assert kernrig(here, "run", "--isolation", "boot", "--", "echo", "up").stdout == "up\n"

    def test_scenarios_of_this_directory_are_there(self, here: Path) -> None:
        (here / "scenarios").mkdir()
        (here / "scenarios" / "test_it.py").write_text("def test_it():\n    assert True\n")
        ran = kernrig(here, "run", "cat", "/opt/kernrig/tree/scenarios/test_it.py")
        assert ran.stdout == "def test_it():\n    assert True\n"


class TestMachinesEnd:
    def test_a_panic_is_125_with_what_the_kernel_said(self, here: Path) -> None:
        ran = kernrig(here, "run", "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
        assert ran.returncode == 125
        assert "kernrig: the guest's kernel panicked\n" in ran.stderr
        assert "Kernel panic - not syncing: sysrq triggered crash" in ran.stderr
        # On a new machine there are lines before it: what was fetched and made.
        assert len(ran.stderr.partition("the guest's kernel panicked")[2].splitlines()) < 40

    def test_so_is_a_panic_that_stays(self, here: Path) -> None:
        ran = kernrig(here, "run", "--", "sh", "-c", "sysctl -qw kernel.panic=0; echo c >/proc/sysrq-trigger")
        assert ran.returncode == 125
        assert "the guest's kernel panicked" in ran.stderr

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            ("poweroff -f", "the guest powered off or rebooted"),
            ("reboot -f", "the guest powered off or rebooted"),
            ("halt -f", "the guest halted"),
        ],
    )
    def test_the_guest_ends_itself(self, here: Path, command: str, said: str) -> None:
        ran = kernrig(here, "run", "--", *command.split())
        assert ran.returncode == 125
        assert said in ran.stderr
        assert "reboot: " in ran.stderr  # the console's tail

    def test_qemu_is_killed(self, here: Path) -> None:
        with started(here, "run", "--", "sh", "-c", "echo up; sleep 100") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            (machine,) = machines(process)
            machine.kill()
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 125
            assert "QEMU was killed from outside (exit status -9)" in errors

    def test_the_time_is_up(self, here: Path) -> None:
        ran = kernrig(here, "run", "--timeout", "1", "--", "sleep", "100")
        assert ran.returncode == 124
        assert "waited 1 s for sleep 100 in the guest" in ran.stderr

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
    )
    def test_a_signal_leaves_no_machine(self, here: Path, number: int, status: int) -> None:
        with started(here, "run", "--", "sh", "-c", "echo up; sleep 100") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            found = machines(process)
            assert len(found) == 1
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == status
            assert gone(found)
            assert "Traceback" not in errors

    def test_a_kill_leaves_no_machine(self, here: Path) -> None:
        with started(here, "run", "--", "sh", "-c", "echo up; sleep 100") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            found = machines(process)
            process.kill()
            wait_for(lambda: gone(found), "QEMU to be gone", seconds=10)

    def test_ctrl_c_while_a_template_is_made_leaves_nothing(self, here: Path, private_cache: Path) -> None:
        with started(here, "run", "true", KERNRIG_CACHE=str(private_cache)) as process:
            assert process.stderr is not None
            assert "booting" in process.stderr.readline()
            found = wait_for(lambda: machines(process), "a machine that boots")
            interrupt(process)
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 130
            assert errors.endswith("kernrig: interrupted\n")
            assert gone(found)
        assert not list((private_cache / "boot-template").iterdir())


class TestShell:
    def test_type_a_command_and_leave(self, here: Path) -> None:
        with terminal(here, "shell") as child:
            child.sendline("uname -r; tty; stty size; id -u")
            child.expect(r"\r\n(\S+)\r\n/dev/pts/0\r\n37 91\r\n0\r\n")
            assert isinstance(child.match, re.Match)
            assert child.match[1] != platform.release()
            child.sendline("exit 5")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 5

    def test_keys_go_to_the_guest(self, here: Path) -> None:
        with terminal(here, "shell") as child:
            # The echo comes from the process that is to be interrupted, which is in the foreground by then.
            child.sendline("sh -c 'echo asleep-$((6 * 7)); exec sleep 1000'")
            child.expect_exact("asleep-42")
            child.sendcontrol("c")
            child.expect_exact("~ # ")
            child.sendline("echo still-$((40 + 2))")
            child.expect_exact("still-42")

    def test_the_terminals_size_follows(self, here: Path) -> None:
        with terminal(here, "shell") as child:
            child.setwinsize(20, 66)
            child.sendline(
                "until [ \"$(stty size)\" = '20 66' ]; do usleep 10000; done; echo has-$((2 * 33))"
            )
            child.expect_exact("has-66")

    @pytest.mark.parametrize("option", [[], ["--console"]])
    def test_the_way_out(self, here: Path, option: list[str]) -> None:
        with terminal(here, "shell", *option) as child:
            assert child.pid is not None
            found = children(child.pid, QEMU)
            assert len(found) == 1
            child.sendcontrol("]")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 0
            assert gone(found)

    def test_a_panic_ends_it_with_the_reason(self, here: Path) -> None:
        with terminal(here, "shell") as child:
            child.sendline("echo c >/proc/sysrq-trigger")
            child.expect_exact("kernrig: the guest's kernel panicked")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 125

    def test_without_a_terminal_it_reads_commands(self, here: Path) -> None:
        ran = kernrig(here, "shell", stdin="echo $((6 * 7))\nexit 3\n")
        assert ran.stdout == "42\n"
        assert ran.returncode == 3


class TestConsole:
    def test_a_shell_where_the_kernels_messages_are(self, here: Path) -> None:
        with terminal(here, "shell", "--console") as child:
            child.sendline("tty; stty size; echo '<4>from-the-kernel' >/dev/kmsg")
            child.expect(r"\r\n/dev/ttyS0\r\n37 91\r\n")
            child.expect(r"\[ *\d+\.\d+\] from-the-kernel\r\n")

    def test_it_has_job_control(self, here: Path) -> None:
        with terminal(here, "shell", "--console") as child:
            # The echo comes from the process that is to be interrupted, which is in the foreground by then.
            child.sendline("sh -c 'echo asleep-$((6 * 7)); exec sleep 1000'")
            child.expect_exact("asleep-42")
            child.sendcontrol("c")
            child.expect_exact("~ # ")
            child.sendline("echo still-$((40 + 2))")
            child.expect_exact("still-42")

    def test_it_shows_a_panic_and_says_that_the_machine_has_ended(self, here: Path) -> None:
        with terminal(here, "shell", "--console") as child:
            child.sendline("echo c >/proc/sysrq-trigger")
            child.expect_exact("Kernel panic - not syncing: sysrq triggered crash")
            child.expect_exact("kernrig: the machine has ended")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 125

    def test_a_boot_is_seen_from_its_first_line_on(self, here: Path) -> None:
        with terminal(here, "shell", "--console", "--isolation", "boot") as child:
            assert isinstance(child.before, str)
            assert "Linux version " in child.before
            child.sendline("echo up-$((6 * 7))")
            child.expect_exact("up-42")

    def test_a_boot_that_fails_is_seen_too(self, here: Path) -> None:
        words = ["shell", "--console", "--isolation", "boot", "--append", "rdinit=/nonsense"]
        child = pexpect.spawn(KERNRIG, words, cwd=str(here), env=environment(), timeout=SECONDS)
        try:
            child.expect_exact("Kernel panic - not syncing")
            child.expect_exact("kernrig: the machine has ended")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 125
        finally:
            child.close(force=True)


class TestKernelAndDoctor:
    def test_show_probes_the_features_in_a_clone(self, here: Path) -> None:
        ran = kernrig(here, "kernel", "show", "--json", "debian")
        facts = json.loads(ran.stdout)
        assert facts["features"]["tcx"] is True
        assert facts["features"]["struct_ops"] is True
        assert set(map(type, facts["features"].values())) == {bool}
        assert facts["release"] == kernrig(here, "run", "uname", "-r").stdout.strip()
        assert Path(facts["btf"]).stat().st_size == facts["btf_bytes"]

    def test_the_doctor_finds_this_host_fit_and_names_the_accelerator(self, here: Path) -> None:
        ran = kernrig(here, "doctor", "--accel", "tcg")
        assert ran.returncode == 0, ran.stdout
        assert "tcg: asked for" in ran.stdout
        assert ran.stdout.endswith("this host can run kernrig\n")

    def test_the_doctor_fails_when_something_is_missing(self, here: Path) -> None:
        ran = kernrig(here, "doctor", "--qemu", "/nonexistent")
        assert ran.returncode == 1
        assert ran.stdout.endswith("missing: qemu\n")


def test_no_temporary_directory_is_left(here: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    assert tempfile.gettempdir() != str(temporary)
    with started(
        here, "run", "--isolation", "boot", "--", "sh", "-c", "echo up; cat", TMPDIR=str(temporary)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        interrupt(process)
        assert process.wait(SECONDS) == 130
    assert list(temporary.iterdir()) == []
