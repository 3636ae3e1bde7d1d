# SPDX-License-Identifier: MIT
"""Tests that ask for `vm` run on the host and drive a machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from harness.vmfixture import GuestError, MachineLostError, Vm


def splat(vm: Vm, deed: str) -> str:
    """The command that makes the kernel do that."""
    root = vm.call("os:environ.get", "KERNRIG_MODULES")
    return f"insmod {root}/kr_splat.ko && echo {deed} > /sys/kernel/debug/kr_splat/provoke"


def test_commands(vm: Vm) -> None:
    assert not Path("/usr/lib/kernrig/boot.py").exists()
    done = vm.run("cat; echo error >&2; exit 7", stdin=b"to and fro")
    assert (done.status, done.output, done.errors) == (7, b"to and fro", b"error\n")
    assert vm.succeed("id -u") == "0\n"
    vm.put(b'#!/bin/sh\necho "it\'s run"\n', "/tmp/it's a script", mode=0o755)
    assert vm.succeed('"/tmp/it\'s a script"') == "it's run\n"


def test_failing_command(vm: Vm) -> None:
    vm.succeed("echo words; echo more >&2; exit 3")


def test_calls(vm: Vm) -> None:
    assert vm.call("os:getpid") > 1
    assert vm.call("json:dumps", {"a": [1]}, indent=None) == '{"a": [1]}'
    with pytest.raises(GuestError, match="FileNotFoundError in the guest") as caught:
        vm.call("os:stat", "/nowhere")
    assert caught.value.kind == "FileNotFoundError"
    assert "line " in caught.value.traceback


def test_call_past_its_deadline(vm: Vm) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="signal:pause in the guest"):
        vm.call("signal:pause", seconds=1)
    assert time.monotonic() - begin < 10


def test_console_and_monitor(vm: Vm) -> None:
    vm.succeed("echo kernrig-was-here > /dev/console")
    vm.console.expect("kernrig-(.*)-here", timeout=20)
    assert vm.qmp.execute("query-status")["status"] == "running"


def test_console_answers_sysrq(vm: Vm) -> None:
    vm.succeed("true")  # a clone that is still being started hears nothing
    vm.qmp.execute("chardev-send-break", {"id": "console"})
    vm.console.send("h")
    vm.console.expect("sysrq: HELP", timeout=20)


def test_expected_panic(vm: Vm) -> None:
    with pytest.raises(MachineLostError):
        vm.call("os:system", splat(vm, "panic"))
    assert "this panic was asked for" in vm.expect_panic("panic was asked for")
    assert vm.wait_until_ended() == 0


def test_unexpected_panic(vm: Vm) -> None:
    with pytest.raises(MachineLostError):
        vm.call("os:system", splat(vm, "panic"))


def test_unexpected_warning(vm: Vm) -> None:
    vm.succeed(splat(vm, "warn"))


@pytest.mark.expect_splat("warning was asked for", reason="the module was told to")
def test_expected_warning(vm: Vm) -> None:
    vm.succeed(splat(vm, "warn"))


def test_expected_end(vm: Vm) -> None:
    vm.expect_end("it is switched off")
    with pytest.raises(MachineLostError):
        vm.call("os:system", "poweroff -f; sleep infinity")
    assert vm.wait_until_ended() == 0


def test_unexpected_end(vm: Vm) -> None:
    os.kill(vm.machine.process.pid, signal.SIGKILL)
    vm.wait_until_ended()


def test_reboot(vm: Vm) -> None:
    vm.succeed("touch /run/mark")
    vm.reboot()
    assert vm.run("test -e /run/mark").status == 1
    assert vm.call("os:getpid") > 1


def test_qemu_has_no_rights(vm: Vm) -> None:
    vm.succeed("true")  # it has started
    lines = Path(f"/proc/{vm.machine.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Name"].startswith("qemu-system")
    if os.geteuid() == 0:
        assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
        assert status["Groups"].strip() == ""
    assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@pytest.mark.vm(cpus=2, memory=512, append="kernrig.word=one kernrig.other=two")
def test_shape(vm: Vm) -> None:
    assert vm.succeed("grep -c ^processor /proc/cpuinfo") == "2\n"
    assert "kernrig.word=one" in vm.succeed("cat /proc/cmdline")
