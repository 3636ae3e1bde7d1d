# SPDX-License-Identifier: MIT
"""Symbols of the kernel: by name from /proc/kallsyms, which takes most of a second to read under TCG, by address from
a program, which is quick.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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

KALLSYMS = Path("/proc/kallsyms")
LONGEST = 256
# kernel/bpf/core.c:bpf_get_prog_name, kernel/bpf/trampoline.c, kernel/bpf/dispatcher.c
_MADE_AT_RUN_TIME = re.compile(r"bpf_(prog_[0-9a-f]{16}(_|$)|trampoline_\d|dispatcher_\d)")


class Symbol(NamedTuple):
    """A line of /proc/kallsyms; `module` is None for the kernel's own, "bpf" for what BPF made."""

    address: int
    name: str
    module: str | None


def every() -> Iterator[Symbol]:
    """All symbols, in the order of /proc/kallsyms, which is read as far as it is asked for."""
    with KALLSYMS.open() as lines:
        for line in lines:
            address, _, name, *module = line.split()
            yield Symbol(int(address, 16), name, module[0].strip("[]") if module else None)


def matching(pattern: str) -> list[Symbol]:
    """The symbols whose whole names match the regex; there may be several of one name."""
    text = KALLSYMS.read_bytes()
    found = []
    for line in re.finditer(rb" (?P<name>%s)(?:\t\[(?P<module>\w+)\])?\n" % pattern.encode(), text):
        begin = text.rfind(b"\n", 0, line.start()) + 1
        address = int(text[begin : line.start()].split()[0], 16)
        module = line["module"]
        found.append(Symbol(address, line["name"].decode(), None if module is None else module.decode()))
    return found


def has_symbol(name: str, module: str | None = None) -> bool:
    """Whether there is such a symbol, of the kernel's own or of that module. `tracing.traceable` is quicker."""
    return any(each.module == module for each in matching(re.escape(name)))


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
