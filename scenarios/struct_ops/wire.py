# SPDX-License-Identifier: MIT
"""A wire that loses or marks every so many packets, counted, so that congestion comes when a scenario wants it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from harness.guest import qdisc, tools
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Code,
    Item,
    and_,
    asm,
    call,
    exit_,
    fetch_add,
    jne,
    label,
    ld_map_value,
    mov,
    r0,
    r1,
    r2,
    r6,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.net import VethPair

TC_ACT_OK, TC_ACT_SHOT = 0, 2  # include/uapi/linux/pkt_cls.h


@dataclass(frozen=True)
class Wire:
    """The way from `veth.a` to `veth.b`; every packet on it is one segment."""

    seen: Map
    every: int

    @property
    def packets(self) -> int:
        """How many packets have come by."""
        raw = self.seen.lookup(0)
        assert raw is not None
        return int(struct.unpack("=Q", raw)[0])

    @property
    def hit(self) -> int:
        """How many of them were lost, or marked if they could be."""
        return self.packets // self.every


@contextmanager
def losing(veth: VethPair, *, every: int) -> Iterator[Wire]:
    """Each `every`th packet (a power of two) that arrives at `veth.b` is dropped. Raises BpfError, NetlinkError."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as seen:
        with Prog.load(_each(every, seen, (mov(r0, TC_ACT_SHOT),)), _SCHED_CLS) as prog:
            _put_on_path(veth, prog)
        yield Wire(seen, every)


@contextmanager
def marking(veth: VethPair, *, every: int) -> Iterator[Wire]:
    """Each `every`th packet (a power of two) that arrives at `veth.b` gets the mark CE if its sender does ECN.

    Raises BpfError, NetlinkError.
    """
    mark = (mov(r1, r6), call(uapi.BPF_FUNC_skb_ecn_set_ce), mov(r0, TC_ACT_OK))
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1) as seen:
        with Prog.load(_each(every, seen, mark), _SCHED_CLS) as prog:
            _put_on_path(veth, prog)
        yield Wire(seen, every)


_SCHED_CLS = uapi.BPF_PROG_TYPE_SCHED_CLS


def _each(every: int, seen: Map, hit: Sequence[Item]) -> Code:
    assert every & (every - 1) == 0, "a power of two"
    return asm(
        mov(r6, r1),
        mov(r2, 1),
        ld_map_value(r1, seen),
        fetch_add(r1, 0, r2),
        and_(r2, every - 1),
        jne(r2, every - 1, "spared"),
        *hit,
        exit_(),
        label("spared"),
        mov(r0, TC_ACT_OK),
        exit_(),
    )


def _put_on_path(veth: VethPair, prog: Prog) -> None:
    # a packet as long as a window would make one loss a catastrophe
    with veth.ns_a.entered():
        tools.run("ip", "link", "set", "dev", veth.a.name, "gso_max_segs", 1)
    qdisc.add_clsact(veth.b)
    qdisc.add_bpf_filter(veth.b, prog.fd)
