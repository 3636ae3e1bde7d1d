# SPDX-License-Identifier: MIT
"""What this kernel can do, found out by behaviour, never by version; scenarios skip by `require`."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from harness.guest import failslab
from harness.guest.bpf import btf, cgroup, netkit, struct_ops, tcx, tracing, uapi
from harness.guest.bpf.asm import add, asm, call, exit_, jeq, label, ld_map_fd, mov, r0, r1, r2, r10, stw
from harness.guest.bpf.attrs import ProgAssocStructOps, ProgQuery
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import StructOps, load_struct_ops_prog
from harness.guest.bpf.syscall import BpfError, bpf
from harness.guest.errnos import errno_of
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import IFLA_NETKIT_HEADROOM, IFLA_NETKIT_PAIRING, IFLA_NETKIT_SCRUB, new_netkit

LOOPBACK = 1


def _tcx() -> bool:
    return errno_of(lambda: tcx.query(LOOPBACK)) == 0


def _netkit() -> bool:
    # drivers/net/netkit.c:netkit_dev_fetch says ENXIO for a device of another kind
    return errno_of(lambda: netkit.query(LOOPBACK)) == errno.ENXIO


def _netkit_setting(kind: int, bad: int | bytes) -> bool:
    """Whether a setting of netkit devices (IFLA_NETKIT_*) is known, for which `bad` is out of range or too short.

    drivers/net/netkit.c:netkit_policy refuses that with ERANGE before the policy, which is bad, too, is looked
    at; an unknown setting is overlooked. So no device is made.
    """
    if not has("netkit"):
        return False
    with NetNamespace.create() as namespace:
        request = new_netkit("probe", 2, "probe_peer", 3, namespace.fd, policy=99, settings={kind: bad})
        return errno_of(lambda: namespace.rtnl.request(request)) == errno.ERANGE


def _cgroup_mprog() -> bool:
    fd = os.open("/sys/fs/cgroup", os.O_RDONLY | os.O_DIRECTORY)
    try:
        sentinel = 0x5EED5EED5EED
        attr = ProgQuery(target_fd=fd, attach_type=uapi.BPF_CGROUP_INET_INGRESS, revision=sentinel)
        # before 6.6 the field is unknown and must be zero
        return errno_of(lambda: bpf(uapi.BPF_PROG_QUERY, attr)) == 0 and attr.revision != sentinel
    finally:
        os.close(fd)


def _struct_ops() -> bool:
    return btf.vmlinux().find("bpf_struct_ops_tcp_congestion_ops", uapi.BTF_KIND_STRUCT) is not None


def _struct_ops_link() -> bool:
    return (
        _struct_ops() and errno_of(lambda: StructOps.create("tcp_congestion_ops", flags=uapi.BPF_F_LINK)) == 0
    )


def _module_struct_ops() -> bool:
    value = btf.vmlinux().find("bpf_struct_ops_tcp_congestion_ops", uapi.BTF_KIND_STRUCT)
    return (
        value is not None
        and errno_of(
            lambda: Map.create(
                uapi.BPF_MAP_TYPE_STRUCT_OPS,
                4,
                btf.vmlinux().size(value),
                flags=uapi.BPF_F_VTYPE_BTF_OBJ_FD,
                btf_vmlinux_value_type_id=value,
                value_type_btf_obj_fd=-1,
            )
        )
        == errno.EBADF
    )


def _struct_ops_link_detach() -> bool:
    if not _struct_ops_link():
        return False
    code = asm(mov(r0, 2), exit_())
    with StructOps.create("tcp_congestion_ops", flags=uapi.BPF_F_LINK) as ops:
        progs = {
            name: load_struct_ops_prog("tcp_congestion_ops", name, code)
            for name in ("ssthresh", "undo_cwnd", "cong_avoid")
        }
        try:
            ops.update({**progs, "name": "kernrig_probe"})
            with ops.link() as link:
                return errno_of(link.detach) == 0
        finally:
            for prog in progs.values():
                prog.close()


def kptr_map(
    tag: str,
    pointee: str = "task_struct",
    map_type: int = uapi.BPF_MAP_TYPE_ARRAY,
    *,
    max_entries: int = 1,
    flags: int = 0,
) -> Map:
    """A map, by default an array of one value, whose value is one tagged pointer to a structure. Raises BpfError."""
    b = BtfBuilder()
    key = b.integer("int", 4)
    value = b.struct("value", 8, [("pointer", b.ptr(b.type_tag(tag, b.struct(pointee, 0))), 0)])
    with b.load() as types:
        return Map.create(
            map_type,
            4,
            8,
            max_entries,
            flags=flags,
            btf=types,
            btf_key_type_id=key,
            btf_value_type_id=value,
        )


def _storage_kptr() -> bool:
    # one change let pointers into all four kinds of local storage (6.4); the tag is known, whatever it means
    return (
        errno_of(
            lambda: kptr_map(
                "kptr", map_type=uapi.BPF_MAP_TYPE_TASK_STORAGE, max_entries=0, flags=uapi.BPF_F_NO_PREALLOC
            )
        )
        == 0
    )


def _has_any_kfunc(*names: str) -> bool:
    return any(btf.vmlinux().has_func(name) for name in names)


@functools.cache
def _kptr_is_referenced(tag: str) -> bool:
    """Whether a pointer with this tag owns a reference.

    A map with an unknown tag can be created, its record is just invalid (kernel/bpf/syscall.c:map_check_btf).
    So a program takes the pointer out and drops it: only of an owned one does the verifier complain for that.
    """
    try:
        pointers = kptr_map(tag)
    except BpfError:
        return False
    with pointers:
        code = asm(
            stw(r10, -4, 0),
            ld_map_fd(r1, pointers),
            mov(r2, r10),
            add(r2, -4),
            call(uapi.BPF_FUNC_map_lookup_elem),
            jeq(r0, 0, "out"),
            mov(r1, r0),
            mov(r2, 0),
            call(uapi.BPF_FUNC_kptr_xchg),
            label("out"),
            mov(r0, 0),
            exit_(),
        )
        try:
            Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS).close()
        except BpfError as error:
            return "Unreleased reference" in error.log
        return False


def _cgroup_preorder() -> bool:
    fd = os.open("/sys/fs/cgroup", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Prog.load(asm(mov(r0, 1), exit_()), uapi.BPF_PROG_TYPE_CGROUP_SKB) as prog:
            flags = uapi.BPF_F_ALLOW_MULTI | uapi.BPF_F_PREORDER
            if errno_of(lambda: cgroup.attach(fd, prog, flags=flags)) != 0:
                return False
            cgroup.detach(fd, prog)
            return True
    finally:
        os.close(fd)


def load_lsm_cgroup(hook: str) -> Prog:
    """A BPF_LSM_CGROUP program that allows everything at an LSM hook ("socket_bind"). Raises BpfError, KeyError."""
    return Prog.load(
        asm(mov(r0, 1), exit_()),
        uapi.BPF_PROG_TYPE_LSM,
        expected_attach_type=uapi.BPF_LSM_CGROUP,
        attach_btf_id=btf.vmlinux().func(f"bpf_lsm_{hook}"),
    )


def _cgroup_lsm() -> bool:
    return _has_any_kfunc("bpf_lsm_socket_bind") and errno_of(lambda: load_lsm_cgroup("socket_bind")) == 0


def _has_member(structure: str, member: str) -> bool:
    types = btf.vmlinux()
    id = types.find(structure, uapi.BTF_KIND_STRUCT)
    return id is not None and any(each.name == member for each in types.members(id))


FEATURES: dict[str, Callable[[], bool]] = {
    "tcx": _tcx,
    "netkit": _netkit,
    "netkit_scrub": lambda: _netkit_setting(IFLA_NETKIT_SCRUB, 99),
    "netkit_single": lambda: _netkit_setting(IFLA_NETKIT_PAIRING, 99),
    "netkit_headroom": lambda: _netkit_setting(IFLA_NETKIT_HEADROOM, b"\0"),
    "cgroup_mprog": _cgroup_mprog,
    "cgroup_preorder": _cgroup_preorder,
    "cgroup_lsm": _cgroup_lsm,
    "struct_ops": _struct_ops,
    "struct_ops_link": _struct_ops_link,
    "struct_ops_link_detach": _struct_ops_link_detach,
    # trampolines of struct_ops maps are named in kallsyms, reading which takes a second under TCG;
    # kernel/bpf/trampoline.c:bpf_image_ksym_init came with their names
    "struct_ops_symbols": lambda: _has_any_kfunc("bpf_image_ksym_init"),
    "struct_ops_association": lambda: (
        errno_of(lambda: bpf(uapi.BPF_PROG_ASSOC_STRUCT_OPS, ProgAssocStructOps(prog_fd=0xFFFFFFFF)))
        == errno.EBADF
    ),
    "module_struct_ops": _module_struct_ops,
    # 6.15 brought arguments that a program owns (suffix __ref) together with members that return objects
    "struct_ops_ref_argument": lambda: _has_member("bpf_ctx_arg_aux", "refcounted"),
    # 6.12: a type has the kernel run code of the type's own behind each of its programs
    "struct_ops_epilogue": lambda: _has_member("bpf_verifier_ops", "gen_epilogue"),
    "struct_ops_private_stack": lambda: _has_member("bpf_prog_aux", "priv_stack_requested"),
    "kptr": lambda: _kptr_is_referenced("kptr") or _kptr_is_referenced("kptr_ref"),
    # 6.4 turned the tags round: "kptr" was unreferenced before, and "kptr_untrusted" is since
    "kptr_untrusted_tag": lambda: _kptr_is_referenced("kptr"),
    "storage_kptr": _storage_kptr,
    # 7.0 and stable series: the allocator releases what is in an element when its memory goes
    "element_destructor": lambda: _has_any_kfunc("bpf_mem_alloc_set_dtor"),
    "local_kptr": lambda: _has_any_kfunc("bpf_obj_new_impl", "bpf_obj_new"),
    "refcounted_kptr": lambda: _has_any_kfunc("bpf_refcount_acquire_impl", "bpf_refcount_acquire"),
    "percpu_kptr": lambda: _has_any_kfunc("bpf_percpu_obj_new_impl", "bpf_percpu_obj_new"),
    "graph_peek": lambda: _has_any_kfunc("bpf_list_front"),
    "failslab": failslab.available,
}


@functools.cache
def has(feature: str) -> bool:
    """Whether the kernel has a feature: one of FEATURES, or "kfunc:NAME", "struct:NAME" (vmlinux BTF),
    "fentry:NAME" (an fentry program for it loads), "struct_ops:NAME" (a type of the kernel's own, such as
    "struct_ops:sched_ext_ops"). Raises KeyError for a name that is none of these.
    """
    kind, _, name = feature.partition(":")
    if not name:
        return FEATURES[feature]()
    if kind == "kfunc":
        return btf.vmlinux().has_func(name)
    if kind == "struct":
        return btf.vmlinux().find(name, uapi.BTF_KIND_STRUCT) is not None
    if kind == "struct_ops":
        return struct_ops.has_type(name)
    if kind == "fentry":
        return tracing.traceable(name)
    raise KeyError(feature)


def require(*features: str) -> None:
    """Skip the test, naming the first feature that is missing."""
    import pytest

    for feature in features:
        if not has(feature):
            pytest.skip(f"this kernel lacks {feature}")
