# SPDX-License-Identifier: MIT
"""union bpf_attr of include/uapi/linux/bpf.h (as of Linux 7.3), one ctypes structure per command.

A field that the kernel gives two names (`relative_fd` and `relative_id`) is one field and an `Alias`. Pointer
fields are plain integers, so that a scenario can send any address; `Attr.point` stores a buffer's address and
keeps it alive.
"""

from __future__ import annotations

import ctypes
from typing import Annotated, Any, TypeVar, get_type_hints

from harness.guest.bpf import uapi

U32 = Annotated[int, ctypes.c_uint32]
S32 = Annotated[int, ctypes.c_int32]
U64 = Annotated[int, ctypes.c_uint64]
Name = Annotated[bytes, ctypes.c_char * 16]  # BPF_OBJ_NAME_LEN

# sizeof(union bpf_attr) of Linux 7.3 (its longest member is BPF_PROG_LOAD's). Older kernels accept the longer
# size as long as the bytes they do not know are zero (kernel/bpf/syscall.c:bpf_check_uarg_tail_zero).
ATTR_SIZE = 168


class Alias:
    """A second name for a field."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __get__(self, attr: object, owner: type | None = None) -> int:
        if attr is None:
            raise AttributeError(f"{self.field} is a field of instances")
        value: int = getattr(attr, self.field)
        return value

    def __set__(self, attr: object, value: int) -> None:
        setattr(attr, self.field, value)


class Attr(ctypes.Structure):
    """Attributes of one command; see `layout`."""

    def __init__(self, **fields: Any) -> None:
        for name in fields:
            if name not in self._names() and not isinstance(
                vars(type(self)).get(name) or _inherited(self, name), Alias
            ):
                raise TypeError(f"{type(self).__name__} has no field {name}")
        super().__init__(**fields)

    @classmethod
    def _names(cls) -> list[str]:
        return [field[0] for base in reversed(cls.__mro__) for field in vars(base).get("_fields_", ())]

    def point(self, field: str, buffer: ctypes.Array[Any] | ctypes.Structure | None) -> None:
        """Set a pointer field to the address of `buffer` (None: NULL), which lives as long as these
        attributes.
        """
        self.__dict__.setdefault("_buffers", {})[field] = buffer
        setattr(self, field, 0 if buffer is None else ctypes.addressof(buffer))

    def describe(self) -> str:
        """The fields that are not zero as "name=value", enums by name, pointers in hex."""
        parts = []
        for name in self._names():
            value = getattr(self, name)
            if not value:
                if name in ("map_type", "attach_type") and (symbol := uapi.name_of(name, 0)):
                    parts.append(f"{name}={symbol}")
                continue
            if isinstance(value, bytes):
                parts.append(f"{name}={value.decode(errors='replace')!r}")
            elif symbol := uapi.name_of(name, value):
                parts.append(f"{name}={symbol}")
            else:
                big = value > 0xFFFF or name.endswith("flags")
                parts.append(f"{name}={value:#x}" if big else f"{name}={value}")
        return " ".join(parts)


def _inherited(attr: Attr, name: str) -> object:
    return next((vars(base)[name] for base in type(attr).__mro__ if name in vars(base)), None)


_A = TypeVar("_A", bound=type[Attr])


def layout(cls: _A) -> _A:
    """Turn the class's annotated fields into ctypes fields, in order, behind those of its base class."""
    inherited = set(cls._names())
    hints = get_type_hints(cls, include_extras=True)
    cls._fields_ = [
        (n, h.__metadata__[0]) for n, h in hints.items() if hasattr(h, "__metadata__") and n not in inherited
    ]
    return cls


@layout
class MapCreate(Attr):
    """BPF_MAP_CREATE."""

    map_type: U32
    key_size: U32
    value_size: U32
    max_entries: U32
    map_flags: U32
    inner_map_fd: U32
    numa_node: U32
    map_name: Name
    map_ifindex: U32
    btf_fd: U32
    btf_key_type_id: U32
    btf_value_type_id: U32
    btf_vmlinux_value_type_id: U32
    map_extra: U64
    value_type_btf_obj_fd: S32
    map_token_fd: S32
    excl_prog_hash: U64
    excl_prog_hash_size: U32


@layout
class MapElem(Attr):
    """BPF_MAP_{LOOKUP,UPDATE,DELETE,LOOKUP_AND_DELETE}_ELEM, BPF_MAP_GET_NEXT_KEY, BPF_MAP_FREEZE."""

    map_fd: U32
    key: U64
    value: U64
    flags: U64
    next_key = Alias("value")


@layout
class MapBatch(Attr):
    """BPF_MAP_{LOOKUP,LOOKUP_AND_DELETE,UPDATE,DELETE}_BATCH; `count` is in and out."""

    in_batch: U64
    out_batch: U64
    keys: U64
    values: U64
    count: U32
    map_fd: U32
    elem_flags: U64
    flags: U64


@layout
class ProgLoad(Attr):
    """BPF_PROG_LOAD."""

    prog_type: U32
    insn_cnt: U32
    insns: U64
    license: U64
    log_level: U32
    log_size: U32
    log_buf: U64
    kern_version: U32
    prog_flags: U32
    prog_name: Name
    prog_ifindex: U32
    expected_attach_type: U32
    prog_btf_fd: U32
    func_info_rec_size: U32
    func_info: U64
    func_info_cnt: U32
    line_info_rec_size: U32
    line_info: U64
    line_info_cnt: U32
    attach_btf_id: U32
    attach_prog_fd: U32
    core_relo_cnt: U32
    fd_array: U64
    core_relos: U64
    core_relo_rec_size: U32
    log_true_size: U32
    prog_token_fd: S32
    fd_array_cnt: U32
    signature: U64
    signature_size: U32
    keyring_id: S32
    attach_btf_obj_fd = Alias("attach_prog_fd")


@layout
class Obj(Attr):
    """BPF_OBJ_PIN, BPF_OBJ_GET."""

    pathname: U64
    bpf_fd: U32
    file_flags: U32
    path_fd: S32


@layout
class ProgAttach(Attr):
    """BPF_PROG_ATTACH, BPF_PROG_DETACH."""

    target_fd: U32
    attach_bpf_fd: U32
    attach_type: U32
    attach_flags: U32
    replace_bpf_fd: U32
    relative_fd: U32
    expected_revision: U64
    target_ifindex = Alias("target_fd")
    relative_id = Alias("relative_fd")


@layout
class TestRun(Attr):
    """BPF_PROG_TEST_RUN."""

    prog_fd: U32
    retval: U32
    data_size_in: U32
    data_size_out: U32
    data_in: U64
    data_out: U64
    repeat: U32
    duration: U32
    ctx_size_in: U32
    ctx_size_out: U32
    ctx_in: U64
    ctx_out: U64
    flags: U32
    cpu: U32
    batch_size: U32


@layout
class GetId(Attr):
    """BPF_*_GET_NEXT_ID, BPF_*_GET_FD_BY_ID."""

    start_id: U32
    next_id: U32
    open_flags: U32
    fd_by_id_token_fd: S32
    id = Alias("start_id")


@layout
class InfoByFd(Attr):
    """BPF_OBJ_GET_INFO_BY_FD."""

    bpf_fd: U32
    info_len: U32
    info: U64


@layout
class ProgQuery(Attr):
    """BPF_PROG_QUERY; `count`, `attach_flags`, `revision` are written by the kernel."""

    target_fd: U32
    attach_type: U32
    query_flags: U32
    attach_flags: U32
    prog_ids: U64
    count: U32
    _pad: U32
    prog_attach_flags: U64
    link_ids: U64
    link_attach_flags: U64
    revision: U64
    target_ifindex = Alias("target_fd")


@layout
class RawTracepoint(Attr):
    """BPF_RAW_TRACEPOINT_OPEN."""

    name: U64
    prog_fd: U32
    _pad: U32
    cookie: U64


@layout
class BtfLoad(Attr):
    """BPF_BTF_LOAD."""

    btf: U64
    btf_log_buf: U64
    btf_size: U32
    btf_log_size: U32
    btf_log_level: U32
    btf_log_true_size: U32
    btf_flags: U32
    btf_token_fd: S32


@layout
class LinkCreate(Attr):
    """BPF_LINK_CREATE without an arm of its union (XDP, netns, struct_ops)."""

    prog_fd: U32
    target_fd: U32
    attach_type: U32
    flags: U32
    map_fd = Alias("prog_fd")
    target_ifindex = Alias("target_fd")


@layout
class LinkCreateMprog(LinkCreate):
    """The tcx, netkit and cgroup arms, which are alike."""

    relative_fd: U32
    expected_revision: U64
    relative_id = Alias("relative_fd")


@layout
class LinkCreateTracing(LinkCreate):
    """The tracing arm (its target_btf_id is the union's own, too)."""

    target_btf_id: U32
    cookie: U64


@layout
class LinkCreateIter(LinkCreate):
    """The iterator arm."""

    iter_info: U64
    iter_info_len: U32


@layout
class LinkCreatePerfEvent(LinkCreate):
    """The perf_event arm."""

    bpf_cookie: U64


@layout
class LinkCreateKprobeMulti(LinkCreate):
    """The kprobe_multi arm; `multi_flags` is its own `flags`."""

    multi_flags: U32
    cnt: U32
    syms: U64
    addrs: U64
    cookies: U64


@layout
class LinkUpdate(Attr):
    """BPF_LINK_UPDATE."""

    link_fd: U32
    new_prog_fd: U32
    flags: U32
    old_prog_fd: U32
    new_map_fd = Alias("new_prog_fd")
    old_map_fd = Alias("old_prog_fd")


@layout
class LinkDetach(Attr):
    """BPF_LINK_DETACH."""

    link_fd: U32


@layout
class EnableStats(Attr):
    """BPF_ENABLE_STATS."""

    type: U32


@layout
class IterCreate(Attr):
    """BPF_ITER_CREATE."""

    link_fd: U32
    flags: U32


@layout
class ProgBindMap(Attr):
    """BPF_PROG_BIND_MAP."""

    prog_fd: U32
    map_fd: U32
    flags: U32


@layout
class ProgAssocStructOps(Attr):
    """BPF_PROG_ASSOC_STRUCT_OPS (7.0)."""

    map_fd: U32
    prog_fd: U32
    flags: U32


@layout
class IterMapInfo(Attr):
    """union bpf_iter_link_info, map arm (the buffer behind LinkCreateIter.iter_info, not an attribute
    itself).
    """

    map_fd: U32
    _rest: Annotated[bytes, ctypes.c_char * 12]


@layout
class IterCgroupInfo(Attr):
    """union bpf_iter_link_info, cgroup arm."""

    order: U32
    cgroup_fd: U32
    cgroup_id: U64


@layout
class IterTaskInfo(Attr):
    """union bpf_iter_link_info, task arm."""

    tid: U32
    pid: U32
    pid_fd: U32
    _rest: U32
