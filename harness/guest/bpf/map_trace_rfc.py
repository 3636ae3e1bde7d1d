# SPDX-License-Identifier: MIT
"""The map tracing that was proposed (version 2, 29 September 2021): its attach type, where a kernel has it.

Programs of type TRACING are made for one of two functions and linked to one map by BPF_LINK_CREATE.
"""

from __future__ import annotations

import ctypes
import functools

from harness.guest.bpf import btf, tracing, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import U32, Attr, LinkCreateIter, layout
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.map_trace_hooks import Hook, Operation
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError

# enum bpf_map_trace_type of the proposal
BPF_MAP_TRACE_UPDATE_ELEM = 0
BPF_MAP_TRACE_DELETE_ELEM = 1
TRACE_TYPES = {
    Operation.UPDATE: BPF_MAP_TRACE_UPDATE_ELEM,
    Operation.DELETE: BPF_MAP_TRACE_DELETE_ELEM,
}
ATTACH_TYPE_HOOKS = (
    Hook(Operation.UPDATE, "bpf_map_trace__BPF_MAP_TRACE_UPDATE_ELEM", value="value"),
    Hook(Operation.DELETE, "bpf_map_trace__BPF_MAP_TRACE_DELETE_ELEM"),
)


@layout
class MapTraceInfo(Attr):
    """struct bpf_map_trace_link_info."""

    map_fd: U32
    trace_type: U32


@functools.cache
def attach_type() -> int | None:
    """The number of BPF_TRACE_MAP in this kernel, or None if it has none.

    The proposal's own number has long been given to another attach type, so that the kernel's BTF is asked for it. A
    program must load with it and attach to a hash map, too.
    """
    number = btf.vmlinux().enum("bpf_attach_type").get("BPF_TRACE_MAP")
    return number if number is not None and works_as_attach_type(number) else None


def works_as_attach_type(number: int) -> bool:
    """Whether a program loads with this attach type for the proposal's function and attaches to a map."""
    hook = ATTACH_TYPE_HOOKS[0]
    try:
        prog = tracing.load_tracing(hook.function, asm(mov(r0, 0), exit_()), attach_type=number)
    except (BpfError, LookupError):
        return False
    with prog, Map.create(uapi.BPF_MAP_TYPE_HASH, 4, 8, 1) as map:
        try:
            attach_to_map(prog, map, hook.operation, number).close()
        except BpfError:
            return False
    return True


def attach_to_map(prog: Prog, map: Map, operation: Operation, number: int) -> Link:
    """Link a program of this attach type to an operation of one map. Raises BpfError."""
    info = MapTraceInfo(map_fd=map.fd, trace_type=TRACE_TYPES[operation])
    # the pointer and length of the proposal's arm stand where the iterators' do
    attr = LinkCreateIter(prog_fd=prog.fd, attach_type=number)
    attr.point("iter_info", info)
    attr.iter_info_len = ctypes.sizeof(info)
    return Link.create(attr)
