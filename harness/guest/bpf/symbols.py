# SPDX-License-Identifier: MIT
"""Names of kernel addresses, asked of the kernel one by one: /proc/kallsyms takes a second to read under TCG."""

from __future__ import annotations

import functools
import re
import struct

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    add,
    asm,
    call,
    exit_,
    ld_map_value,
    ldxdw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r10,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog

LONGEST = 256
# kernel/bpf/core.c:bpf_get_prog_name, kernel/bpf/trampoline.c, kernel/bpf/dispatcher.c
_MADE_AT_RUN_TIME = re.compile(r"bpf_(prog_[0-9a-f]{16}(_|$)|trampoline_\d|dispatcher_\d)")


class Symbols:
    """Looks addresses up by a program of type SYSCALL, with bpf_snprintf's "%ps". Raises BpfError without it (5.14)."""

    def __init__(self) -> None:
        self._text = Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, LONGEST, 1, name="symbol")
        with Map.create(
            uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, flags=uapi.BPF_F_RDONLY_PROG, name="format"
        ) as format:
            format[0] = b"%ps\0"
            format.freeze()
            self._prog = Prog.load(
                asm(
                    ldxdw(r1, r1),
                    stxdw(r10, -8, r1),
                    ld_map_value(r1, self._text),
                    mov(r2, LONGEST),
                    ld_map_value(r3, format),
                    mov(r4, r10),
                    add(r4, -8),
                    mov(r5, 8),
                    call(uapi.BPF_FUNC_snprintf),
                    mov(r0, 0),
                    exit_(),
                ),
                uapi.BPF_PROG_TYPE_SYSCALL,
                name="symbol",
                flags=uapi.BPF_F_SLEEPABLE,
            )

    def close(self) -> None:
        """Close the program and its map; again is harmless."""
        self._prog.close()
        self._text.close()

    def name(self, address: int) -> str | None:
        """The symbol that holds the address, such as "bpf_map_update_value" or "bpf_prog_6deef7357e7b4530_name", with
        "[module]" behind that of a module; None if no symbol does.
        """
        self._prog.test_run(ctx=struct.pack("=Q", address))
        raw = self._text.lookup(0)
        assert raw is not None
        text = raw.split(b"\0")[0].decode()
        return None if text.startswith("0x") else text


@functools.cache
def _kernel_name(address: int) -> str | None:
    symbols = Symbols()
    try:
        found = symbols.name(address)
    finally:
        symbols.close()
    return found


def kernel_function(address: int) -> str | None:
    """The function of the kernel's own text at an address; None for a module's, a BPF program's, or none at all.

    An answer is kept: the kernel's text does not move. Raises BpfError.
    """
    found = _kernel_name(address)
    if found is None or found.endswith("]") or _MADE_AT_RUN_TIME.match(found):
        return None
    return found
