# SPDX-License-Identifier: MIT
"""What BPF_OBJ_GET_INFO_BY_FD tells about a program, map, link or BTF object, as frozen dataclasses."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Annotated

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import U32, U64, Attr, InfoByFd, Name, layout
from harness.guest.bpf.syscall import bpf


@layout
class RawProgInfo(Attr):
    """struct bpf_prog_info."""

    type: U32
    id: U32
    tag: Annotated[bytes, ctypes.c_uint8 * 8]
    jited_prog_len: U32
    xlated_prog_len: U32
    jited_prog_insns: U64
    xlated_prog_insns: U64
    load_time: U64
    created_by_uid: U32
    nr_map_ids: U32
    map_ids: U64
    name: Name
    ifindex: U32
    gpl_compatible: U32
    netns_dev: U64
    netns_ino: U64
    nr_jited_ksyms: U32
    nr_jited_func_lens: U32
    jited_ksyms: U64
    jited_func_lens: U64
    btf_id: U32
    func_info_rec_size: U32
    func_info: U64
    nr_func_info: U32
    nr_line_info: U32
    line_info: U64
    jited_line_info: U64
    nr_jited_line_info: U32
    line_info_rec_size: U32
    jited_line_info_rec_size: U32
    nr_prog_tags: U32
    prog_tags: U64
    run_time_ns: U64
    run_cnt: U64
    recursion_misses: U64
    verified_insns: U32
    attach_btf_obj_id: U32
    attach_btf_id: U32
    _pad: U32


@layout
class RawMapInfo(Attr):
    """struct bpf_map_info."""

    type: U32
    id: U32
    key_size: U32
    value_size: U32
    max_entries: U32
    map_flags: U32
    name: Name
    ifindex: U32
    btf_vmlinux_value_type_id: U32
    netns_dev: U64
    netns_ino: U64
    btf_id: U32
    btf_key_type_id: U32
    btf_value_type_id: U32
    btf_vmlinux_id: U32
    map_extra: U64
    hash: U64
    hash_size: U32
    _pad: U32


@layout
class RawBtfInfo(Attr):
    """struct bpf_btf_info."""

    btf: U64
    btf_size: U32
    id: U32
    name: U64
    name_len: U32
    kernel_btf: U32


@layout
class RawLinkInfo(Attr):
    """struct bpf_link_info; `arm` is its union, 48 bytes long since 6.6."""

    type: U32
    id: U32
    prog_id: U32
    _pad: U32
    arm: Annotated[bytes, ctypes.c_uint8 * 48]


@dataclass(frozen=True)
class ProgInfo:
    """A program: `map_ids` are its maps, `load_time_ns` is since boot, `run_*` need `enable_stats`."""

    type: int
    id: int
    tag: bytes
    name: str
    load_time_ns: int
    gpl_compatible: bool
    map_ids: tuple[int, ...]
    btf_id: int
    xlated_prog_len: int
    jited_prog_len: int
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int
    attach_btf_obj_id: int
    attach_btf_id: int


@dataclass(frozen=True)
class MapInfo:
    """A map. `btf_vmlinux_id` is the id of the BTF that a struct_ops value's type is in (6.9; 0 before)."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    name: str
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int
    btf_vmlinux_value_type_id: int
    btf_vmlinux_id: int
    map_extra: int


@dataclass(frozen=True)
class LinkInfo:
    """A link; what its type does not have is None. `raw` is the whole structure as the kernel wrote it."""

    type: int
    id: int
    prog_id: int
    attach_type: int | None
    ifindex: int | None
    map_id: int | None
    cgroup_id: int | None
    target_obj_id: int | None
    target_btf_id: int | None
    raw: bytes


@dataclass(frozen=True)
class BtfInfo:
    """A BTF object: `name` is "vmlinux", a module's name, or empty for one loaded by user space."""

    id: int
    name: str
    kernel_btf: bool
    size: int


def get_info(fd: int, info: Attr | bytearray) -> int:
    """Fill `info` by BPF_OBJ_GET_INFO_BY_FD; returns the length the kernel knows. Raises BpfError."""
    raw = bytes(info)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    attr = InfoByFd(bpf_fd=fd, info_len=len(raw))
    attr.point("info", buffer)
    bpf(uapi.BPF_OBJ_GET_INFO_BY_FD, attr)
    if isinstance(info, bytearray):
        info[:] = buffer.raw
    else:
        ctypes.memmove(ctypes.byref(info), buffer, len(raw))
    return attr.info_len


def prog_info(fd: int) -> ProgInfo:
    """Info of the program behind `fd`. Raises BpfError."""
    raw = RawProgInfo()
    get_info(fd, raw)
    map_ids = (ctypes.c_uint32 * raw.nr_map_ids)()
    if raw.nr_map_ids:
        # a second call, asking for nothing but the ids: lengths left in would ask for the code as well
        again = RawProgInfo(nr_map_ids=raw.nr_map_ids)
        again.point("map_ids", map_ids)
        get_info(fd, again)
    return ProgInfo(
        type=raw.type,
        id=raw.id,
        tag=bytes(raw.tag),
        name=raw.name.decode(),
        load_time_ns=raw.load_time,
        gpl_compatible=bool(raw.gpl_compatible & 1),
        map_ids=tuple(map_ids),
        btf_id=raw.btf_id,
        xlated_prog_len=raw.xlated_prog_len,
        jited_prog_len=raw.jited_prog_len,
        run_time_ns=raw.run_time_ns,
        run_cnt=raw.run_cnt,
        recursion_misses=raw.recursion_misses,
        verified_insns=raw.verified_insns,
        attach_btf_obj_id=raw.attach_btf_obj_id,
        attach_btf_id=raw.attach_btf_id,
    )


def map_info(fd: int) -> MapInfo:
    """Info of the map behind `fd`. Raises BpfError."""
    raw = RawMapInfo()
    get_info(fd, raw)
    return MapInfo(
        type=raw.type,
        id=raw.id,
        key_size=raw.key_size,
        value_size=raw.value_size,
        max_entries=raw.max_entries,
        map_flags=raw.map_flags,
        name=raw.name.decode(),
        btf_id=raw.btf_id,
        btf_key_type_id=raw.btf_key_type_id,
        btf_value_type_id=raw.btf_value_type_id,
        btf_vmlinux_value_type_id=raw.btf_vmlinux_value_type_id,
        btf_vmlinux_id=raw.btf_vmlinux_id,
        map_extra=raw.map_extra,
    )


# where each link type keeps what in the union: field -> (offset in the union, size); struct bpf_link_info of
# bpf.h
_LINK_ARMS: dict[int, dict[str, tuple[int, int]]] = {
    uapi.BPF_LINK_TYPE_TRACING: {"attach_type": (0, 4), "target_obj_id": (4, 4), "target_btf_id": (8, 4)},
    uapi.BPF_LINK_TYPE_CGROUP: {"cgroup_id": (0, 8), "attach_type": (8, 4)},
    uapi.BPF_LINK_TYPE_ITER: {"map_id": (12, 4)},
    uapi.BPF_LINK_TYPE_XDP: {"ifindex": (0, 4)},
    uapi.BPF_LINK_TYPE_STRUCT_OPS: {"map_id": (0, 4)},
    uapi.BPF_LINK_TYPE_TCX: {"ifindex": (0, 4), "attach_type": (4, 4)},
    uapi.BPF_LINK_TYPE_NETKIT: {"ifindex": (0, 4), "attach_type": (4, 4)},
}


def link_info(fd: int) -> LinkInfo:
    """Info of the link behind `fd`; an iterator's `map_id` is 0 if it walks no map. Raises BpfError."""
    raw = RawLinkInfo()
    get_info(fd, raw)
    arm = bytes(raw.arm)
    fields = {
        name: int.from_bytes(arm[at : at + size], "little")
        for name, (at, size) in _LINK_ARMS.get(raw.type, {}).items()
    }
    return LinkInfo(
        type=raw.type,
        id=raw.id,
        prog_id=raw.prog_id,
        attach_type=fields.get("attach_type"),
        ifindex=fields.get("ifindex"),
        map_id=fields.get("map_id"),
        cgroup_id=fields.get("cgroup_id"),
        target_obj_id=fields.get("target_obj_id"),
        target_btf_id=fields.get("target_btf_id"),
        raw=bytes(raw),
    )


def btf_info(fd: int) -> BtfInfo:
    """Info of the BTF object behind `fd`. Raises BpfError."""
    name = ctypes.create_string_buffer(64)  # MODULE_NAME_LEN is 56
    raw = RawBtfInfo(name_len=len(name))
    raw.point("name", name)
    get_info(fd, raw)
    return BtfInfo(id=raw.id, name=name.value.decode(), kernel_btf=bool(raw.kernel_btf), size=raw.btf_size)
