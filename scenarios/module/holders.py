# SPDX-License-Identifier: MIT
"""What keeps a module loaded, each as a maker of one holder; and what does not."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from harness.guest import modules, tcp
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import asm, call, exit_, jeq, label, ld_btf_id, ldxw, mov, r0, r1, r2
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has, kptr_map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.kr_modules import DEBUGFS
from harness.guest.waiting import wait_until
from scenarios.kptr.kfuncs import Kfuncs
from scenarios.kptr.owning_map import owning_map
from scenarios.module.attaching import (
    FUNCTIONS,
    attached,
    bare_tracepoint,
    kprobe_multi,
    modify_return,
    raw_tracepoint,
    tracing,
)
from scenarios.module.tables import TYPE, load_adder, new_table

Holder = Callable[[int], AbstractContextManager[object]]
"""Makes the holder with this number; the two of a scenario must not be in each other's way."""


def reads_variable() -> Prog:
    """A program that returns kr_traced's variable, by its BTF id. Raises BpfError."""
    types = btf.module("kr_traced")
    variable = types.id("kr_traced_answer", uapi.BTF_KIND_VAR)
    code = asm(
        *(ld_btf_id(r1, variable, types.object.fd), mov(r2, 0), call(uapi.BPF_FUNC_per_cpu_ptr)),
        *(jeq(r0, 0, "out"), ldxw(r0, r0, 0), label("out"), exit_()),
    )
    return Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)


def kfunc_program(number: int) -> AbstractContextManager[object]:
    kfuncs = Kfuncs()
    return kfuncs.load(kfuncs.new(), kfuncs.release())


def pinned_program(number: int) -> AbstractContextManager[object]:
    with kfunc_program(number) as program:
        assert isinstance(program, Prog)
        return pinned(program, f"program{number}")


def variable_program(number: int) -> AbstractContextManager[object]:
    return reads_variable()


def fentry_link(number: int) -> AbstractContextManager[object]:
    # up to 6.3 it is the trampoline that holds the module, once for each function
    return attached(tracing(FUNCTIONS[number], uapi.BPF_TRACE_FENTRY))


def fexit_link(number: int) -> AbstractContextManager[object]:
    return attached(tracing(FUNCTIONS[number], uapi.BPF_TRACE_FEXIT))


def fmod_ret_link(number: int) -> AbstractContextManager[object]:
    return attached(modify_return)


def raw_tracepoint_link(number: int) -> AbstractContextManager[object]:
    return attached((raw_tracepoint("kr_traced_event"), bare_tracepoint("kr_traced_bare"))[number])


def kprobe_multi_link(number: int) -> AbstractContextManager[object]:
    return attached(kprobe_multi)


@contextmanager
def map_in_map_template(number: int) -> Iterator[None]:
    """Of a map that is gone; it is freed late, and what it held is as much as the template holds."""
    before = modules.refcount("kr_kptr")
    with owning_map("kr_obj") as inner:
        with_inner = modules.refcount("kr_kptr")
        outer = Map.create(uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, inner_map=inner)
    with outer:
        wait_until(
            lambda: modules.refcount("kr_kptr") == with_inner > before,
            timeout=2,
            what="the inner map to be freed",
        )
        yield


def pinned(object: Descriptor, name: str) -> AbstractContextManager[object]:
    """Pins it; it is unpinned at the context's end."""
    path = Path(f"/sys/fs/bpf/{name}")
    object.pin(path)
    pin = ExitStack()
    pin.callback(path.unlink)
    return pin


def pinned_map(number: int) -> AbstractContextManager[object]:
    with owning_map("kr_obj") as map:
        return pinned(map, f"owning{number}")


@contextmanager
def registered_table(number: int) -> Iterator[object]:
    with new_table(slot=number) as table:
        yield table
        table.delete()


def table_link(number: int) -> AbstractContextManager[object]:
    with new_table(slot=number, flags=uapi.BPF_F_LINK) as table:
        return table.link()


def pinned_link(number: int) -> AbstractContextManager[object]:
    with new_table(slot=number, flags=uapi.BPF_F_LINK) as table, table.link() as link:
        return pinned(link, f"link{number}")


def opened(path: Path | str) -> Descriptor:
    """A descriptor of a file, open for reading. Raises OSError."""
    return Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def open_file(number: int) -> AbstractContextManager[object]:
    return opened(DEBUGFS / "kr_ops" / ("call", "stats")[number])


def congestion_control(number: int) -> AbstractContextManager[object]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.set_congestion(sock, "bbr")
    return sock


HOLDERS: dict[str, tuple[str, Holder]] = {
    "kfunc_program": ("kr_kptr", kfunc_program),
    "pinned_kfunc_program": ("kr_kptr", pinned_program),
    "map_that_owns_objects": ("kr_kptr", lambda number: owning_map("kr_obj")),
    "hash_that_owns_objects": ("kr_kptr", lambda number: owning_map("kr_obj", uapi.BPF_MAP_TYPE_HASH)),
    "hash_that_owns_objects_and_allocates_late": (
        "kr_kptr",
        lambda number: owning_map("kr_obj", uapi.BPF_MAP_TYPE_HASH, flags=uapi.BPF_F_NO_PREALLOC),
    ),
    "pinned_map_that_owns_objects": ("kr_kptr", pinned_map),
    "template_of_inner_maps": ("kr_kptr", map_in_map_template),
    "program_that_reads_a_variable": ("kr_traced", variable_program),
    "fentry_link": ("kr_traced", fentry_link),
    "fexit_link": ("kr_traced", fexit_link),
    "fmod_ret_link": ("kr_traced", fmod_ret_link),
    "raw_tracepoint_link": ("kr_traced", raw_tracepoint_link),
    "kprobe_multi_link": ("kr_traced", kprobe_multi_link),
    "table_without_a_value": ("kr_ops", lambda number: StructOps.create(TYPE, module="kr_ops")),
    "table_ready_for_a_link": ("kr_ops", lambda number: new_table(slot=number, flags=uapi.BPF_F_LINK)),
    "registered_table": ("kr_ops", registered_table),
    "link_of_a_table": ("kr_ops", table_link),
    "pinned_link_of_a_table": ("kr_ops", pinned_link),
    "open_file_of_the_module": ("kr_ops", open_file),
    "socket_on_its_algorithm": ("tcp_bbr", congestion_control),
}


NO_HOLDERS: dict[str, tuple[str, Callable[[], AbstractContextManager[object]]]] = {
    "struct_ops_program": ("kr_ops", load_adder),
    "descriptor_of_its_btf": ("kr_kptr", lambda: btf.module("kr_kptr").object),
    "map_that_only_sees_objects": (
        "kr_kptr",
        lambda: kptr_map("kptr_untrusted" if has("kptr_untrusted_tag") else "kptr", "kr_obj"),
    ),
    "open_parameter": ("kr_ops", lambda: opened("/sys/module/kr_ops/parameters/reg_error")),
    "open_btf_in_sysfs": ("kr_ops", lambda: opened("/sys/kernel/btf/kr_ops")),
}
