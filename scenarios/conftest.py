# SPDX-License-Identifier: MIT
"""Fixtures that several facilities share. They run in the guest, in the scenario's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, asm, exit_, mov, r0
from harness.guest.bpf.probe import require
from harness.guest.bpf.prog import Prog
from harness.guest.kr_modules import KrKptr, KrOps, KrTypes, missing
from harness.guest.net import Device, VethPair, veth_pair
from harness.guest.netns import NetNamespace


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "requires(*features): skip, naming the first feature that harness.guest.bpf.probe finds missing",
    )


@pytest.fixture(autouse=True)
def _required_features(request: pytest.FixtureRequest) -> None:
    marks = list(request.node.iter_markers("requires"))
    if marks and "vm" in request.fixturenames:
        pytest.fail("requires() probes in the guest, but a test that asks for `vm` runs on the host")
    for mark in reversed(marks):
        require(*mark.args)


@pytest.fixture
def netns() -> Iterator[NetNamespace]:
    """A fresh network namespace; the scenario's thread is in it."""
    with NetNamespace.create() as namespace, namespace.entered():
        yield namespace


@pytest.fixture
def veth() -> Iterator[VethPair]:
    """Two devices, each in a namespace of its own; the scenario's thread is in that of end b."""
    with veth_pair() as pair, pair.ns_b.entered():
        yield pair


@pytest.fixture
def dev(veth: VethPair) -> Device:
    """A device in the current namespace with nothing attached: end b of `veth`."""
    return veth.b


class LoadSchedCls(Protocol):
    """Loads a program: the instructions, if any, then `return verdict`."""

    def __call__(self, *items: Item, verdict: int = uapi.TCX_NEXT, name: str = "") -> Prog: ...


@pytest.fixture
def sched_cls() -> Iterator[LoadSchedCls]:
    """A factory of SCHED_CLS programs that are closed when the scenario ends."""
    with ExitStack() as stack:

        def load(*items: Item, verdict: int = uapi.TCX_NEXT, name: str = "") -> Prog:
            code = asm(*items, mov(r0, verdict), exit_())
            return stack.enter_context(Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS, name=name))

        yield load


@pytest.fixture
def panic_on_oops() -> None:
    """From now on an oops ends the machine at once: the splat is complete, and nobody waits for a dead task's locks."""
    Path("/proc/sys/kernel/panic_on_oops").write_text("1")


@pytest.fixture
def kr_kptr() -> Iterator[KrKptr]:
    """Our module with a kptr type, loaded; it complains in the kernel log if it leaves with live objects."""
    if reason := missing("kr_kptr"):
        pytest.skip(reason)
    with KrKptr() as module:
        yield module


@pytest.fixture
def kr_ops() -> Iterator[KrOps]:
    """Our module with a struct_ops type, loaded; it complains if it leaves with registered tables."""
    require("module_struct_ops")
    if reason := missing("kr_ops"):
        pytest.skip(reason)
    with KrOps() as module:
        yield module


@pytest.fixture
def kr_types() -> Iterator[KrTypes]:
    """Our module with further struct_ops types, loaded."""
    require("module_struct_ops")
    if reason := missing("kr_types"):
        pytest.skip(reason)
    with KrTypes() as module:
        yield module
