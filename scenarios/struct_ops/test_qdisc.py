# SPDX-License-Identifier: MIT
"""A queueing discipline made of programs: devices send by it, and keep it when it is unregistered."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from harness.guest import tools
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Code,
    Insn,
    Item,
    add,
    and_,
    asm,
    call,
    call_kfunc,
    exit_,
    fetch_add,
    ja,
    jeq,
    jge,
    jne,
    label,
    ld_map_fd,
    ld_map_value,
    ldxdw,
    ldxw,
    may_goto,
    mov,
    r0,
    r1,
    r2,
    r3,
    r6,
    r7,
    r8,
    r10,
    stxw,
    sub,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import refused
from harness.guest.net import VethPair
from harness.guest.netns import NetNamespace
from harness.guest.traffic import send_frames
from scenarios.kptr.owning_map import OWNED, owning_map
from scenarios.struct_ops.algorithms import inuse, seen, tobefree
from scenarios.struct_ops.connections import wait_until_freed

pytestmark = pytest.mark.requires("struct:bpf_struct_ops_Qdisc_ops")

TYPE, NAME = "Qdisc_ops", "kr_fifo"
DEFAULT = "net.core.default_qdisc"
PLACES = 4
NET_XMIT_DROP = 1  # include/linux/netdevice.h


def kfunc(name: str) -> Insn:
    return call_kfunc(btf.vmlinux().func(name))


def qlen() -> int:
    types = btf.vmlinux()
    return types.offset("Qdisc", "q.qlen")


def exchange(places: Map, ends: Map, end: int, packet: Item) -> Item:
    """Exchange what `packet` puts into r2, a packet or NULL, with what is in the next place from one end of the queue.

    What was there is in r0; without a place it goes on at label "nowhere".
    """
    return (
        ld_map_value(r1, ends, end),
        mov(r2, 1),
        fetch_add(r1, 0, r2),
        and_(r2, PLACES - 1),
        stxw(r10, -4, r2),
        ld_map_fd(r1, places),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "nowhere"),
        mov(r1, r0),
        add(r1, OWNED),
        packet,
        call(uapi.BPF_FUNC_kptr_xchg),
    )


def enqueue(places: Map, ends: Map) -> Code:
    return asm(
        mov(r6, r1),
        ldxdw(r7, r6, 0),
        ldxdw(r8, r6, 8),
        ldxw(r1, r8, qlen()),
        jge(r1, PLACES, "nowhere"),
        exchange(places, ends, 0, mov(r2, r7)),
        jeq(r0, 0, "alone"),
        mov(r1, r0),
        kfunc("bpf_kfree_skb"),
        label("alone"),
        ldxw(r1, r8, qlen()),
        add(r1, 1),
        stxw(r8, qlen(), r1),
        mov(r0, 0),
        exit_(),
        label("nowhere"),
        mov(r1, r7),
        ldxdw(r2, r6, 16),
        kfunc("bpf_qdisc_skb_drop"),
        mov(r0, NET_XMIT_DROP),
        exit_(),
    )


def dequeue(places: Map, ends: Map) -> Code:
    return asm(
        ldxdw(r8, r1, 0),
        ldxw(r3, r8, qlen()),
        jeq(r3, 0, "nowhere"),
        sub(r3, 1),
        stxw(r8, qlen(), r3),
        exchange(places, ends, 8, mov(r2, 0)),
        exit_(),
        label("nowhere"),
        mov(r0, 0),
        exit_(),
    )


@dataclass(frozen=True)
class Fifo:
    """A queue of four packets; `ends` counts those that went in and those that came out, and has two words to spare."""

    ops: StructOps
    progs: dict[str, Prog]
    ends: Map

    @property
    def members(self) -> dict[str, Prog | str]:
        """What makes a table of it."""
        return {**self.progs, "id": NAME}

    def moved(self) -> tuple[int, int]:
        """How many packets went in and came out."""
        raw = self.ends.lookup(0)
        assert raw is not None
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:16], "little")


@pytest.fixture
def fifo() -> Iterator[Fifo]:
    """Not registered yet; it is unregistered if a scenario leaves it so."""
    nothing = asm(mov(r0, 0), exit_())
    with ExitStack() as stack:
        hold = stack.enter_context
        places, ends = hold(owning_map("sk_buff")), hold(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 32, 1))
        code = {"enqueue": enqueue(places, ends), "dequeue": dequeue(places, ends)}
        code |= dict.fromkeys(("init", "reset", "destroy"), nothing)
        progs = {member: hold(load_struct_ops_prog(TYPE, member, each)) for member, each in code.items()}
        ops = hold(StructOps.create(TYPE))
        yield Fifo(ops, progs, ends)
        if not ops.map.closed and ops.state() == uapi.BPF_STRUCT_OPS_STATE_INUSE:
            ops.delete()


def test_device_sends_by_programs_and_keeps_them_when_they_are_unregistered(
    veth: VethPair, fifo: Fifo
) -> None:
    """STOPS-UPD-014, -016, -017, STOPS-CMD-004, STOPS-STATE-016, STOPS-PROG-017, -018: each packet goes in and comes
    out again; when the queue is removed the last reference goes.
    """
    fifo.ops.update(fifo.members)
    map_id, prog_ids = fifo.ops.map.id, set(fifo.ops.prog_ids().values())
    with veth.ns_a.entered():
        tools.tc("qdisc", "add", "dev", veth.a.name, "root", NAME)
        assert seen(fifo.ops) == inuse(2)
        assert send_frames(veth, 6) == 6
        assert fifo.moved() == (6, 6)

        fifo.ops.delete()

        with pytest.raises(tools.ToolError):
            tools.tc("qdisc", "add", "dev", veth.a.name, "handle", "7:", "root", NAME)
        assert seen(fifo.ops) == tobefree(1)
        assert send_frames(veth, 6) == 6
        assert fifo.moved() == (12, 12)
        tools.tc("qdisc", "del", "dev", veth.a.name, "root")
    assert seen(fifo.ops) == tobefree(0)
    fifo.ops.close()
    for prog in fifo.progs.values():
        prog.close()
    wait_until_freed(map_id, prog_ids)


@pytest.mark.parametrize("missing", ["enqueue", "dequeue", "init", "reset", "destroy", "id"])
def test_table_needs_all_its_members(fifo: Fifo, missing: str) -> None:
    """STOPS-UPD-008, -014, -018: EINVAL, and the whole is taken afterwards."""
    with refused(errno.EINVAL):
        fifo.ops.update({name: what for name, what in fifo.members.items() if name != missing})
    assert not any(fifo.ops.lookup())
    fifo.ops.update(fifo.members)
    with StructOps.create(TYPE) as namesake, refused(errno.EEXIST):
        namesake.update(fifo.members)


@pytest.fixture
def queues(netns: NetNamespace) -> str:
    """A device with two queues for sending, running."""
    name = "kr_queues"
    tools.ip("link", "add", name, "numtxqueues", 2, "type", "veth", "peer", "name", "kr_peer")
    for each in (name, "kr_peer"):
        tools.ip("link", "set", each, "up")
    return name


def kinds(dev: str) -> dict[str, str]:
    """The kinds of the device's queueing disciplines, by parent; the one at the root has the parent ""."""
    return {each.get("parent", ""): each["kind"] for each in tools.tc("qdisc", "show", "dev", dev)}


def test_queue_stands_at_the_root_or_below_mq(queues: str, fifo: Fifo) -> None:
    """STOPS-PROG-015, STOPS-CMD-004: the type has the kernel run code of its own in front of init, which refuses other
    places, and the refused queue holds nothing.
    """
    fifo.ops.update(fifo.members)
    tools.tc("qdisc", "add", "dev", queues, "root", "handle", "1:", "mq")
    tools.tc("qdisc", "replace", "dev", queues, "parent", "1:1", "handle", "11:", NAME)
    assert kinds(queues)["1:1"] == NAME
    assert seen(fifo.ops) == inuse(2)

    tools.tc("qdisc", "replace", "dev", queues, "root", "handle", "2:", "netem")
    with pytest.raises(tools.ToolError, match="only supported on root or mq"):
        tools.tc("qdisc", "add", "dev", queues, "parent", "2:1", NAME)
    assert seen(fifo.ops) == inuse(1)


@pytest.fixture
def initial() -> Iterator[NetNamespace]:
    """The initial namespace, which alone has the default, and gets it back."""
    with NetNamespace.current() as namespace:
        before = namespace.sysctl(DEFAULT)
        yield namespace
        namespace.set_sysctl(DEFAULT, before)


def test_queue_may_be_what_devices_get_by_default(initial: NetNamespace, queues: str, fifo: Fifo) -> None:
    """STOPS-CMD-004, STOPS-SEED-001: the default holds the table as its queues do, also once it is unregistered."""
    fifo.ops.update(fifo.members)
    inherited = initial.sysctl(DEFAULT)
    initial.set_sysctl(DEFAULT, NAME)
    assert seen(fifo.ops) == inuse(2)

    fifo.ops.delete()

    tools.tc("qdisc", "add", "dev", queues, "root", "handle", "1:", "mq")
    assert set(kinds(queues).values()) == {"mq", NAME}
    assert seen(fifo.ops) == tobefree(3)
    initial.set_sysctl(DEFAULT, inherited)
    assert seen(fifo.ops) == tobefree(2)
    tools.tc("qdisc", "del", "dev", queues, "root")
    assert seen(fifo.ops) == tobefree(0)


def looping(memory: Map, at: int) -> Code:
    """A program that counts in `memory`, and the first time jumps back to its first instruction."""
    return asm(
        label("first"),
        ld_map_value(r1, memory, at),
        mov(r2, 1),
        fetch_add(r1, 0, r2),
        jne(r2, 0, "out"),
        may_goto("out"),  # lets the verifier believe that this ends
        ja("first"),
        label("out"),
        mov(r0, 0),
        exit_(),
    )


def forking(memory: Map, at: int) -> Code:
    """A program that counts in `memory`, with an exit for the first time and another for all others."""
    return asm(
        ld_map_value(r1, memory, at),
        mov(r2, 1),
        fetch_add(r1, 0, r2),
        jeq(r2, 0, "first"),
        mov(r0, 0),
        exit_(),
        label("first"),
        mov(r0, 0),
        exit_(),
    )


@pytest.mark.parametrize(("code", "runs"), [(looping, (3, 3)), (forking, (2, 2))], ids=["looping", "forking"])
def test_kernels_own_code_stands_around_a_program_whatever_its_way(
    queues: str, fifo: Fifo, code: Callable[[Map, int], Code], runs: tuple[int, int]
) -> None:
    """STOPS-PROG-015, STOPS-UPD-017: in front of init and behind destroy, once for each call: a jump to the first
    instruction stays within the program, and each exit leads to what stands behind.
    """
    with ExitStack() as stack:
        for at, member in enumerate(("init", "destroy")):
            prog = load_struct_ops_prog(TYPE, member, code(fifo.ends, 16 + 8 * at))
            fifo.progs[member] = stack.enter_context(prog)
        fifo.ops.update(fifo.members)
    for _ in range(2):
        tools.tc("qdisc", "add", "dev", queues, "root", NAME)
        tools.tc("qdisc", "del", "dev", queues, "root")
    raw = fifo.ends.lookup(0)
    assert raw is not None
    assert (int.from_bytes(raw[16:24], "little"), int.from_bytes(raw[24:], "little")) == runs
    assert seen(fifo.ops) == inuse(1)
