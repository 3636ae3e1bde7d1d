# SPDX-License-Identifier: MIT
"""Algorithms of kernel modules and of programs side by side: who has a name, and who holds whom."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.guest import modules, tcp
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import refused
from harness.guest.errnos import fails_with
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, seen
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.kernel_algorithms import module_files

pytestmark = [pytest.mark.requires("struct_ops")]


def refuse(file: Path) -> None:
    """The module's init function finds its name taken. Since 7.0 the loader says EBUSY for an init's EEXIST, which it
    keeps for modules that are loaded already (kernel/module/main.c:do_init_module).
    """
    with fails_with(errno.EEXIST, errno.EBUSY):
        modules.load(file)


@pytest.fixture(params=["dctcp", "bbr"])
def rival(request: pytest.FixtureRequest, unloading: None) -> Iterator[tuple[str, Path]]:
    """The name of an algorithm of the kernel's in a module that is not loaded, and its file."""
    files = module_files(f"tcp_{request.param}")
    if not files:
        pytest.skip(f"this image has no module tcp_{request.param}")
    if modules.state(f"tcp_{request.param}") is not None:
        modules.unload(f"tcp_{request.param}")
    yield request.param, files[0]


def test_name_belongs_to_the_module_or_to_the_map_whichever_came_first(
    rival: tuple[str, Path], netns: NetNamespace, idle: Algorithm, new_ops: NewOps
) -> None:
    """MODLIFE-RACE-020, STOPS-TCP-003, STOPS-UPD-018: EEXIST for the second; then the name is free for the other."""
    name, file = rival
    ops = new_ops()
    for _ in range(3):
        module = modules.load(file)
        with refused(errno.EEXIST):
            ops.update(idle.members(name))
        assert tcp.available(netns).count(name) == 1
        modules.unload(module)
        assert name not in tcp.available(netns)

        ops.update(idle.members(name))

        refuse(file)
        assert modules.state(module) is None
        assert tcp.available(netns).count(name) == 1
        with socket.socket() as sock:
            tcp.set_congestion(sock, name)
            assert seen(ops) == inuse(2)
        ops.delete()
        ops = new_ops()


@pytest.mark.requires("struct_ops_link")
def test_ready_map_waits_for_a_module_to_leave_its_name(
    rival: tuple[str, Path], netns: NetNamespace, idle: Algorithm, link_ops: StructOps
) -> None:
    """MODLIFE-RACE-020, STOPS-LINK-003, STOPS-QUIRK-007: link creation says EEXIST until then."""
    name, file = rival
    link_ops.update(idle.members(name))
    module = modules.load(file)
    with refused(errno.EEXIST):
        link_ops.link()
    modules.unload(module)
    with link_ops.link():
        refuse(file)
        assert name in tcp.available(netns)
    modules.load(file)
    assert name in tcp.available(netns)


def test_sockets_hold_the_module_of_their_algorithm(
    rival: tuple[str, Path], veth: VethPair, idle: Algorithm, ops: StructOps
) -> None:
    """MODLIFE-REF-018, MODLIFE-LAW-001, STOPS-TCP-011: until they change it, to one of programs too, or are gone."""
    name, file = rival
    ops.update(idle.members())
    module = modules.load(file)
    with tcp.connect(veth, congestion=name) as pair:
        pair.transfer(32 * 1024)
        assert modules.refcount(module) == 1
        with pytest.raises(BlockingIOError):
            modules.unload(module)
        assert name in tcp.available(veth.ns_a)

        tcp.set_congestion(pair.client, NAME)

        assert modules.refcount(module) == 0
        pair.transfer(32 * 1024)
        assert idle.count("cong_avoid") > 0

        tcp.set_congestion(pair.client, name)

        assert (modules.refcount(module), seen(ops)) == (1, inuse(1))
        pair.transfer(32 * 1024)
    assert modules.refcount(module) == 0
    modules.unload(module)
    assert name not in tcp.available(veth.ns_a)
