# SPDX-License-Identifier: MIT
"""Entries of connection tracking as references: a fresh one and one that has been inserted are different things.

Their kfuncs belong to a module, for programs on packets, and no map can own an entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EBUSY, EINVAL, ENOENT, EPROTO
from pathlib import Path
from socket import IPPROTO_ICMP, IPPROTO_UDP

import pytest

from harness.errors import KernrigError
from harness.guest import modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import (
    Insn,
    Item,
    add,
    asm,
    call,
    call_kfunc,
    exit_,
    jeq,
    label,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r6,
    r7,
    r8,
    r10,
    stw,
    sub,
)
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.netns import NetNamespace
from scenarios.kptr.pointers import kind, owning_tag, pointer_map, types_are_parsed_early, viewing_tag

TUPLE, OPTIONS = -32, -16
"""Where they are in the stack: struct bpf_sock_tuple of IPv4, struct bpf_ct_opts."""
UNRELATED_PACKET = bytes(64)
COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
# include/uapi/linux/netfilter/nf_conntrack_common.h:enum ip_conntrack_status
SEEN_REPLY, ASSURED, CONFIRMED = 1 << 1, 1 << 2, 1 << 3


@dataclass(frozen=True)
class Tracking:
    """The kfuncs of connection tracking, a module or built in, for one of the two program types; r6 is the context."""

    types: btf.Btf
    prog_type: int
    prefix: str

    def call(self, name: str) -> Insn:
        return call_kfunc(self.types.func(name), 0 if self.types.base is None else 1)

    def alloc(self) -> Item:
        """r7 = a fresh entry."""
        return [arguments(), self.call(f"bpf_{self.prefix}_ct_alloc"), jeq(r0, 0, "out"), mov(r7, r0)]

    def lookup(self, protocol: int = IPPROTO_UDP) -> Item:
        """r7 = an entry that is there; if there is none, r8 is the error."""
        return [
            arguments(protocol),
            self.call(f"bpf_{self.prefix}_ct_lookup"),
            ldxw(r8, r10, OPTIONS + 4),
            jeq(r0, 0, "out"),
            mov(r7, r0),
        ]

    def insert(self) -> Item:
        """r7 = the entry, which is no longer fresh."""
        return [mov(r1, r7), self.call("bpf_ct_insert_entry"), jeq(r0, 0, "out"), mov(r7, r0)]

    def set(self, name: str, value: int) -> Item:
        """Call bpf_ct_NAME."""
        return [mov(r1, r7), mov(r2, value), self.call(f"bpf_ct_{name}")]

    def release(self) -> Item:
        return [mov(r1, r7), self.call("bpf_ct_release")]

    def load(self, *items: Item) -> Prog:
        code = asm(mov(r6, r1), mov(r8, 0), *items, label("out"), mov(r0, r8), exit_())
        own: list[Descriptor | int] = [] if self.types.base is None else [0, self.types.object]
        return Prog.load(code, self.prog_type, fd_array=own)

    def run(self, *items: Item) -> int:
        """What r8 is behind this, as a signed number."""
        with self.load(*items) as prog:
            result = prog.test_run(UNRELATED_PACKET).retval
        return result - (1 << 32) if result >> 31 else result


def arguments(protocol: int = IPPROTO_UDP) -> Item:
    """Those of both kfuncs, for a connection that no packet belongs to."""
    return [
        stw(r10, TUPLE, 0x0102007F),
        stw(r10, TUPLE + 4, 0x0202007F),
        stw(r10, TUPLE + 8, 0x00350035),
        stw(r10, OPTIONS, -1),
        stw(r10, OPTIONS + 4, 0),
        stw(r10, OPTIONS + 8, protocol),
        mov(r1, r6),
        mov(r2, r10),
        add(r2, TUPLE),
        mov(r3, 12),
        mov(r4, r10),
        add(r4, OPTIONS),
        mov(r5, 12),
    ]


@pytest.fixture(params=["skb", "xdp"])
def tracking(request: pytest.FixtureRequest) -> Tracking:
    try:
        modules.modprobe("nf_conntrack")
    except KernrigError as error:
        pytest.skip(f"this kernel has no connection tracking: {error}")
    types = btf.home("nf_conntrack")
    if not types.has_func("bpf_skb_ct_alloc"):
        pytest.skip("this kernel lacks kfunc bpf_skb_ct_alloc of nf_conntrack")
    prog_type = {"skb": uapi.BPF_PROG_TYPE_SCHED_CLS, "xdp": uapi.BPF_PROG_TYPE_XDP}[request.param]
    return Tracking(types, prog_type, request.param)


@pytest.fixture
def namespace(tracking: Tracking) -> Iterator[NetNamespace]:
    """A namespace of its own, in which connections are tracked and there is none yet."""
    with NetNamespace.create() as namespace, namespace.entered():
        yield namespace


def test_entry_of_a_program_is_inserted_found_and_counted(
    tracking: Tracking, namespace: NetNamespace
) -> None:
    """KPTR-XCHG-015, MODLIFE-REF-006: a fresh one is in no table; inserted it stays, whoever releases it."""
    t = tracking
    status = t.types.offset("nf_conn", "status")
    users = t.types.offset("nf_conn", "ct_general.use.refs.counter")
    assert t.run(t.lookup(), t.release()) == -ENOENT
    assert int(COUNT.read_text()) == 0

    inserted = t.run(
        t.alloc(),
        t.set("set_timeout", 100_000),
        t.set("set_status", SEEN_REPLY),
        t.insert(),
        ldxw(r8, r7, status),
        t.release(),
    )

    assert inserted == SEEN_REPLY | CONFIRMED, "the one as set, the other by the insertion"
    assert int(COUNT.read_text()) == 1
    assert [t.run(t.lookup(), ldxw(r8, r7, users), t.release()) for _ in range(2)] == [2, 2]
    assert t.run(t.alloc(), t.insert(), mov(r8, 1), t.release()) == 0, "a second one of the same connection"


def test_entry_that_was_inserted_is_changed(tracking: Tracking, namespace: NetNamespace) -> None:
    """KPTR-XCHG-015: its time runs anew; of its status, bits that the kernel has set may not go."""
    t = tracking
    status = t.types.offset("nf_conn", "status")

    def change(what: str, value: int) -> int:
        return t.run(t.lookup(), t.set(f"change_{what}", value), mov(r8, r0), t.release())

    def ticks_left() -> int:
        return t.run(
            t.lookup(),
            call(uapi.BPF_FUNC_jiffies64),
            ldxw(r8, r7, t.types.offset("nf_conn", "timeout")),
            sub(r8, r0),
            t.release(),
        )

    t.run(t.alloc(), t.set("set_timeout", 100_000), t.set("set_status", SEEN_REPLY), t.insert(), t.release())
    at_first = ticks_left()
    assert change("timeout", 200_000) == 0
    assert 1.9 < ticks_left() / at_first < 2.1

    assert change("status", CONFIRMED) == -EBUSY
    assert change("status", CONFIRMED | SEEN_REPLY | ASSURED) == 0
    assert t.run(t.lookup(), ldxw(r8, r7, status), t.release()) == CONFIRMED | SEEN_REPLY | ASSURED


def test_protocol_that_is_not_tracked_finds_nothing(tracking: Tracking, namespace: NetNamespace) -> None:
    """KPTR-XCHG-015: and the options say why."""
    assert tracking.run(tracking.lookup(IPPROTO_ICMP), tracking.release()) == -EPROTO


INSERTED = "expected pointer to STRUCT nf_conn___init but"
FRESH = "expected pointer to STRUCT nf_conn but"
LEAK = "Unreleased reference"
NULL = "NULL pointer passed|memory, len pair leads to invalid memory access"

REFUSED: dict[str, tuple[int | None, str, Callable[[Tracking], Item]]] = {
    "fresh, released": (EINVAL, FRESH, lambda t: [t.alloc(), t.release()]),
    "fresh, kept": (EINVAL, LEAK, lambda t: t.alloc()),
    "fresh, timeout changed": (
        EINVAL,
        FRESH,
        lambda t: [t.alloc(), t.set("change_timeout", 1), t.insert(), t.release()],
    ),
    "fresh, status changed": (
        EINVAL,
        FRESH,
        lambda t: [t.alloc(), t.set("change_status", 1), t.insert(), t.release()],
    ),
    "inserted twice": (EINVAL, INSERTED, lambda t: [t.alloc(), t.insert(), t.insert(), t.release()]),
    "inserted and kept": (EINVAL, LEAK, lambda t: [t.alloc(), t.insert()]),
    "inserted, result not tested": (
        None,
        "NULL pointer passed|expected .* pointer|ptr_or_null|arg#0",
        lambda t: [t.alloc(), mov(r1, r7), t.call("bpf_ct_insert_entry"), mov(r7, r0), t.release()],
    ),
    "inserted, timeout set": (
        EINVAL,
        INSERTED,
        lambda t: [t.alloc(), t.insert(), t.set("set_timeout", 1), t.release()],
    ),
    "inserted, status set": (
        EINVAL,
        INSERTED,
        lambda t: [t.alloc(), t.insert(), t.set("set_status", 1), t.release()],
    ),
    "found, inserted": (EINVAL, INSERTED, lambda t: [t.lookup(), t.insert(), t.release()]),
    "found and kept": (EINVAL, LEAK, lambda t: t.lookup()),
    "found, written to": (
        EACCES,
        "no write support to nf_conn at off|only read is supported",
        lambda t: [t.lookup(), stw(r7, t.types.offset("nf_conn", "status"), 0), t.release()],
    ),
    "no tuple": (
        None,
        NULL,
        lambda t: [
            arguments(),
            mov(r2, 0),
            t.call(f"bpf_{t.prefix}_ct_lookup"),
            jeq(r0, 0, "out"),
            mov(r7, r0),
            t.release(),
        ],
    ),
    "no options": (
        None,
        NULL,
        lambda t: [
            arguments(),
            mov(r4, 0),
            t.call(f"bpf_{t.prefix}_ct_lookup"),
            jeq(r0, 0, "out"),
            mov(r7, r0),
            t.release(),
        ],
    ),
}


def test_entry_in_the_wrong_state_is_refused(tracking: Tracking) -> None:
    """KPTR-XCHG-015, MODLIFE-REF-006: by its type, which insertion changes; what is right stands in the test above."""
    wrong = []
    for name, (errno, says, make) in REFUSED.items():
        try:
            tracking.load(make(tracking)).close()
        except BpfError as error:
            if errno not in (None, error.errno) or not re.search(says, error.log):
                wrong.append(f"{name}: {error.errno_name}\n{error.log}")
        else:
            wrong.append(f"{name}: loaded")
    assert not wrong, "\n".join(wrong)


def test_entry_is_not_for_maps(tracking: Tracking) -> None:
    """KPTR-MAP-029: a pointer may show one, but not own it, as it has no destructor: such a pointer is not taken for
    one, or the types are refused.
    """
    with pointer_map(viewing_tag(), "nf_conn") as map:
        assert kind(map) == "viewing"
    if types_are_parsed_early():
        with refused(ENOENT, EINVAL) as why:
            pointer_map(owning_tag(), "nf_conn")
        assert why.error.command == "BPF_BTF_LOAD"
    else:
        with pointer_map(owning_tag(), "nf_conn") as map:
            assert kind(map) == "data"
