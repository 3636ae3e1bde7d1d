# SPDX-License-Identifier: MIT
"""Kernels that complain, taint themselves, keep objects or go down. Each test's name says what it provokes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest import modules
from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.net import veth_pair
from harness.guest.netns import NetNamespace

Provoke = Callable[[str], None]
Hang = pytest.mark.vm(timeout=3)


def test_warning(unloaded: Provoke, count: int) -> None:
    unloaded("warn")


def test_warning_and_failed_assert(unloaded: Provoke) -> None:
    unloaded("warn")
    assert Path("/etc/hostname").read_text() == "another name"


@pytest.mark.xfail(reason="a splat is no failure that could be expected this way")
def test_warning_and_xfail(unloaded: Provoke) -> None:
    unloaded("warn")
    raise AssertionError


@pytest.mark.expect_splat("this warning was asked for", reason="the module was told to warn")
def test_expected_warning(unloaded: Provoke) -> None:
    unloaded("warn")


@pytest.mark.expect_splat("refcount_t: decrement hit 0", reason="not what will happen")
def test_other_warning_than_expected(unloaded: Provoke) -> None:
    unloaded("warn")


@pytest.mark.expect_splat("this warning was asked for", reason="nobody asks for it")
def test_missing_warning() -> None: ...


@pytest.mark.expect_splat("panic was asked for", reason="the module was told to panic")
def test_expected_panic(provoke: Provoke) -> None:
    provoke("panic")


@pytest.mark.known_issue("F7", reason="the module does as it is told", splat="panic was asked for")
def test_known_panic(provoke: Provoke) -> None:
    provoke("panic")


@pytest.mark.known_issue("F8", reason="not what will happen", splat="refcount_t: decrement hit 0")
def test_other_panic_than_known(provoke: Provoke) -> None:
    provoke("panic")


@pytest.mark.parametrize("deed", ["bug", "oops", "refcount", "list", "panic"])
def test_splat(provoke: Provoke, deed: str) -> None:
    provoke(deed)


@pytest.mark.expect_splat("kernel BUG at", reason="the module was told to")
def test_expected_bug(provoke: Provoke) -> None:
    """The kernel ends the process, and keeps the module that it was in: still a failure, but only for that."""
    provoke("bug")


def test_taint(count: int) -> None:
    Path("/proc/sys/kernel/tainted").write_text("512")


def hold(fd: int) -> None:
    """Leave a process behind that keeps the descriptor."""
    subprocess.Popen(["sleep", "infinity"], pass_fds=[fd], start_new_session=True)


def sched_cls(name: str) -> Prog:
    return Prog.load(asm(mov(r0, 0), exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS, name=name)


def test_leaked_prog(count: int) -> None:
    with sched_cls("kr_leaked_prog") as prog:
        hold(prog.fd)


def test_leaked_map() -> None:
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, name="kr_leaked_map") as map:
        hold(map.fd)


def test_leaked_pin() -> None:
    with sched_cls("kr_pinned_prog") as prog:
        prog.pin("/sys/fs/bpf/kr_pin")


def test_leaked_link() -> None:
    with NetNamespace.create(loopback=True) as ns, ns.entered(), sched_cls("kr_linked") as prog:
        hold(tcx.link("lo", prog).release())


def test_leaked_netns() -> None:
    NetNamespace.create("kr_leaked_ns")


def test_leaked_module(count: int) -> None:
    modules.load_test_module("kr_kptr")


def test_deferred_frees() -> None:
    """All of these are freed in the background, after the scenario has ended."""
    maps = [Map.create(uapi.BPF_MAP_TYPE_HASH, max_entries=4096, value_size=1024) for _ in range(32)]
    prog = sched_cls("kr_short")
    with veth_pair() as pair, pair.ns_b.entered():
        link = tcx.link(pair.b, prog)
        for each in (link, prog, *maps):
            each.close()


def test_power_off() -> None:
    subprocess.run(["poweroff", "-f"], check=True)
    signal.pause()


def test_reboot() -> None:
    subprocess.run(["reboot", "-f"], check=True)
    signal.pause()


def test_agent_killed() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


def test_out_of_memory() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")
    hoard = []
    while True:
        hoard.append(os.urandom(1 << 20))


def test_kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_crashes() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_exits() -> None:
    os._exit(3)


@Hang
def test_waits_for_ever() -> None:
    signal.pause()


@Hang
def test_silent_agent() -> None:
    """Nobody answers the host any more, but the kernel does."""
    os.kill(os.getppid(), signal.SIGSTOP)
    signal.pause()


@Hang
def test_hard_hang(provoke: Provoke) -> None:
    provoke("hang")


@Hang
def test_stuck_task(provoke: Provoke) -> None:
    provoke("stuck")


def test_next_one_runs(count: int) -> None:
    assert count == 1
