# SPDX-License-Identifier: MIT
"""fentry, fexit and iterator programs for kernel functions found in BTF, and what can be traced."""

from __future__ import annotations

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import Code, asm, exit_, mov, r0
from harness.guest.bpf.link import Link
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError


def traceable(name: str, module: str | None = None) -> bool:
    """Whether an fentry program for the function loads.

    It does not if the function is not in BTF, or has no symbol because it was inlined or renamed.
    """
    try:
        load_tracing(name, asm(mov(r0, 0), exit_()), attach_type=uapi.BPF_TRACE_FENTRY, module=module).close()
    except (LookupError, BpfError):
        return False
    return True


def attachable(name: str) -> bool:
    """Whether an fentry program for the function of the kernel can be put before it, too.

    The verifier takes programs for files that are built without ftrace's places (CFLAGS_REMOVE in kernel/bpf/Makefile),
    but kernel/bpf/trampoline.c:register_fentry finds none there: EBUSY.
    """
    try:
        with load_tracing(name, asm(mov(r0, 0), exit_()), attach_type=uapi.BPF_TRACE_FENTRY) as prog:
            Link.tracing(prog, uapi.BPF_TRACE_FENTRY).close()
    except (LookupError, BpfError):
        return False
    return True


def argument_offset(name: str, argument: str, module: str | None = None) -> int:
    """Where an argument stands in the context of an fentry or fexit program, in bytes. Raises LookupError.

    "return" is fexit's result, behind the arguments. Arguments that take more than a register are not
    handled.
    """
    names = [parameter.name for parameter in btf.of(module).parameters(name)]
    if argument != "return" and argument not in names:
        raise LookupError(f"{name} has no argument {argument}, but {', '.join(names)}")
    return 8 * (len(names) if argument == "return" else names.index(argument))


def result_kind(name: str, module: str | None = None) -> str:
    """What a function returns, as fexit programs see it: "int" (of any width), "bool", "pointer" or "void".

    Raises LookupError.
    """
    types = btf.of(module)
    returned = types.type(types.type(types.func(name)).type).type
    if not returned:
        return "void"
    type = types.strip(returned)
    if type.kind == uapi.BTF_KIND_PTR:
        return "pointer"
    return "bool" if type.name == "_Bool" else "int"


def load_tracing(
    function: str,
    insns: Code | bytes,
    *,
    attach_type: int = uapi.BPF_TRACE_FEXIT,
    module: str | None = None,
    target: Prog | None = None,
    target_btf_id: int = 0,
    name: str = "",
    flags: int = 0,
    log_level: int = 0,
) -> Prog:
    """Load an fentry, fexit or modify-return program for a kernel function, or for one (`target_btf_id`) of
    the program `target`. Raises BpfError, LookupError.
    """
    source = None if target is not None else btf.of(module)
    return Prog.load(
        insns,
        uapi.BPF_PROG_TYPE_TRACING,
        name=name or function[:15],
        expected_attach_type=attach_type,
        attach_btf_id=target_btf_id if source is None else source.func(function),
        attach_btf_obj_fd=0 if source is None else source.attach_fd,
        attach_prog=target,
        flags=flags,
        log_level=log_level,
    )


def attach_tracing(prog: Prog, attach_type: int = uapi.BPF_TRACE_FEXIT, *, cookie: int = 0) -> Link:
    """Attach a tracing program to what it was loaded for, by BPF_LINK_CREATE. Raises BpfError."""
    return Link.tracing(prog, attach_type, cookie=cookie)


def load_iterator(target: str, insns: Code | bytes, *, name: str = "", flags: int = 0) -> Prog:
    """Load an iterator program, such as for "bpf_map_elem". Raises BpfError, LookupError.

    Its context is struct bpf_iter__TARGET: pointers `meta` at 0, then the target's own from 8 on. Attach it
    with `Link.iterator` and run it with `Link.read_iterator`.
    """
    return Prog.load(
        insns,
        uapi.BPF_PROG_TYPE_TRACING,
        name=name or target[:15],
        expected_attach_type=uapi.BPF_TRACE_ITER,
        attach_btf_id=btf.vmlinux().func(f"bpf_iter_{target}"),
        flags=flags,
    )
