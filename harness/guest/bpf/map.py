# SPDX-License-Identifier: MIT
"""BPF maps: creation with every attribute, elements as bytes, and `map[key]` for the everyday cases."""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import MapBatch, MapCreate, MapElem
from harness.guest.bpf.descriptor import Descriptor, fd_of
from harness.guest.bpf.info import MapInfo, map_info
from harness.guest.bpf.syscall import BpfError, bpf

Element = int | bytes | bytearray | tuple[int, ...] | ctypes.Structure | ctypes.Array[Any]
"""A key or value: bytes as they are, an int in native byte order, a tuple by the map's struct format, any
ctypes.
"""

PERCPU_MAP_TYPES = frozenset(
    (
        uapi.BPF_MAP_TYPE_PERCPU_HASH,
        uapi.BPF_MAP_TYPE_PERCPU_ARRAY,
        uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH,
        uapi.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE,
    )
)


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU look-up returns: the number of possible CPUs."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().replace(",", "-").split("-")[-1]
    return int(last) + 1


class Map(Descriptor):
    """A map. `key_format` and `value_format` (struct module) say how `map[key]` reads and writes; None: an
    int for sizes 1, 2, 4, 8 and bytes for others."""

    _GET_FD = uapi.BPF_MAP_GET_FD_BY_ID
    _GET_NEXT = uapi.BPF_MAP_GET_NEXT_ID

    key_format: str | None = None
    value_format: str | None = None

    @classmethod
    def create(
        cls,
        map_type: int,
        key_size: int = 4,
        value_size: int = 8,
        max_entries: int = 1,
        *,
        name: str = "",
        flags: int = 0,
        inner_map: Map | int | None = None,
        btf: Descriptor | int | None = None,
        btf_key_type_id: int = 0,
        btf_value_type_id: int = 0,
        btf_vmlinux_value_type_id: int = 0,
        value_type_btf_obj_fd: int = 0,
        map_extra: int = 0,
        numa_node: int = 0,
        key_format: str | None = None,
        value_format: str | None = None,
    ) -> Map:
        """Create a map; the arguments are BPF_MAP_CREATE's. Raises BpfError."""
        attr = MapCreate(
            map_type=map_type,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            map_flags=flags,
            map_name=name.encode(),
            inner_map_fd=fd_of(inner_map),
            btf_fd=fd_of(btf),
            btf_key_type_id=btf_key_type_id,
            btf_value_type_id=btf_value_type_id,
            btf_vmlinux_value_type_id=btf_vmlinux_value_type_id,
            value_type_btf_obj_fd=value_type_btf_obj_fd,
            map_extra=map_extra,
            numa_node=numa_node,
        )
        made = cls(bpf(uapi.BPF_MAP_CREATE, attr))
        made.key_format, made.value_format = key_format, value_format
        return made

    def info(self) -> MapInfo:
        """The kernel's description, asked for anew. Raises BpfError."""
        return map_info(self.fd)

    @functools.cached_property
    def shape(self) -> MapInfo:
        """The description as it was at the first use: type and sizes, which never change."""
        return self.info()

    @property
    def id(self) -> int:
        """The kernel's id of this map."""
        return self.shape.id

    @property
    def percpu(self) -> bool:
        """Whether an element is one value per possible CPU."""
        return self.shape.type in PERCPU_MAP_TYPES

    @property
    def value_stride(self) -> int:
        """Bytes that one value takes in a look-up's buffer: per-CPU values are rounded up to 8."""
        size = self.shape.value_size
        if self.shape.type in (uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS, uapi.BPF_MAP_TYPE_HASH_OF_MAPS):
            return 4
        return (size + 7) // 8 * 8 if self.percpu else size

    @property
    def _element_size(self) -> int:
        return self.value_stride * (possible_cpus() if self.percpu else 1)

    def lookup(self, key: Element, *, flags: int = 0) -> bytes | None:
        """The value (per-CPU maps: all of them, one `value_stride` each), or None if there is no such key.

        Raises BpfError for anything but ENOENT.
        """
        return self._lookup(uapi.BPF_MAP_LOOKUP_ELEM, key, flags)

    def lookup_and_delete(self, key: Element | None = None, *, flags: int = 0) -> bytes | None:
        """Take the value out (queues and stacks have no key); None if there is none.

        Raises BpfError otherwise.
        """
        return self._lookup(uapi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, flags)

    def _lookup(self, cmd: int, key: Element | None, flags: int) -> bytes | None:
        value = ctypes.create_string_buffer(self._element_size)
        attr = MapElem(map_fd=self.fd, flags=flags)
        attr.point("key", None if key is None else self._buffer(key, self.shape.key_size, self.key_format))
        attr.point("value", value)
        try:
            bpf(cmd, attr)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(
        self, key: Element | None, value: Element | list[Element], *, flags: int = uapi.BPF_ANY
    ) -> None:
        """Write an element; a per-CPU one from a list, one value per CPU, or one value for all CPUs.

        Raises BpfError.
        """
        attr = MapElem(map_fd=self.fd, flags=flags)
        attr.point("key", None if key is None else self._buffer(key, self.shape.key_size, self.key_format))
        attr.point("value", self._value_buffer(value))
        bpf(uapi.BPF_MAP_UPDATE_ELEM, attr)

    def delete(self, key: Element, *, flags: int = 0) -> None:
        """Delete an element. Raises BpfError (ENOENT: no such key)."""
        attr = MapElem(map_fd=self.fd, flags=flags)
        attr.point("key", self._buffer(key, self.shape.key_size, self.key_format))
        bpf(uapi.BPF_MAP_DELETE_ELEM, attr)

    def next_key(self, key: Element | None = None) -> bytes | None:
        """The key behind `key` (None: the first), or None at the end. Raises BpfError."""
        found = ctypes.create_string_buffer(self.shape.key_size)
        attr = MapElem(map_fd=self.fd)
        attr.point("key", None if key is None else self._buffer(key, self.shape.key_size, self.key_format))
        attr.point("next_key", found)
        try:
            bpf(uapi.BPF_MAP_GET_NEXT_KEY, attr)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return found.raw

    def freeze(self) -> None:
        """Make the map read-only for user space. Raises BpfError."""
        bpf(uapi.BPF_MAP_FREEZE, MapElem(map_fd=self.fd))

    def lookup_batch(
        self, count: int, *, start: bytes | None = None, delete: bool = False, flags: int = 0
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Up to `count` elements and the position for the next call (None: that was all). Raises BpfError.

        ENOSPC (a hash bucket does not fit into what is left of `count`) is raised as well.
        """
        key_size, size = self.shape.key_size, self._element_size
        keys, values = (
            ctypes.create_string_buffer(key_size * count),
            ctypes.create_string_buffer(size * count),
        )
        # hash maps keep a u32 there whatever the key's size
        # (kernel/bpf/hashtab.c:__htab_map_lookup_and_delete_batch)
        position = ctypes.create_string_buffer(max(4, key_size))
        attr = MapBatch(map_fd=self.fd, count=count, elem_flags=flags)
        if start is not None:
            attr.point("in_batch", ctypes.create_string_buffer(start, len(start)))
        attr.point("out_batch", position)
        attr.point("keys", keys)
        attr.point("values", values)
        rest: bytes | None = position.raw
        try:
            bpf(uapi.BPF_MAP_LOOKUP_AND_DELETE_BATCH if delete else uapi.BPF_MAP_LOOKUP_BATCH, attr)
            rest = position.raw
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            rest = None
        pairs = [
            (keys.raw[i * key_size : (i + 1) * key_size], values.raw[i * size : (i + 1) * size])
            for i in range(attr.count)
        ]
        return pairs, rest

    def update_batch(self, elements: Sequence[tuple[Element, Element]], *, flags: int = 0) -> int:
        """Write elements by BPF_MAP_UPDATE_BATCH; how many were written. Raises BpfError."""
        attr = MapBatch(map_fd=self.fd, count=len(elements), elem_flags=flags)
        size = self.shape.key_size
        joined = b"".join(bytes(self._buffer(key, size, self.key_format)) for key, _ in elements)
        attr.point("keys", ctypes.create_string_buffer(joined, len(joined)))
        joined = b"".join(bytes(self._value_buffer(value)) for _, value in elements)
        attr.point("values", ctypes.create_string_buffer(joined, len(joined)))
        bpf(uapi.BPF_MAP_UPDATE_BATCH, attr)
        return attr.count

    def delete_batch(self, keys: Sequence[Element], *, flags: int = 0) -> int:
        """Delete elements by BPF_MAP_DELETE_BATCH; how many were deleted. Raises BpfError."""
        attr = MapBatch(map_fd=self.fd, count=len(keys), elem_flags=flags)
        joined = b"".join(bytes(self._buffer(key, self.shape.key_size, self.key_format)) for key in keys)
        attr.point("keys", ctypes.create_string_buffer(joined, len(joined)))
        bpf(uapi.BPF_MAP_DELETE_BATCH, attr)
        return attr.count

    def keys(self) -> Iterator[bytes]:
        """All keys, in the kernel's order."""
        key = self.next_key()
        while key is not None:
            yield key
            key = self.next_key(key)

    def items(self) -> Iterator[tuple[object, object]]:
        """All elements, decoded as `map[key]` would; an element deleted meanwhile is left out."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield _decode(key, self.key_format), self._decode_value(value)

    def __getitem__(self, key: Element) -> object:
        """The decoded value; of a per-CPU map a list, one value per possible CPU.

        Raises KeyError, BpfError.
        """
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        return self._decode_value(value)

    def __setitem__(self, key: Element, value: Element | list[Element]) -> None:
        self.update(key, value)

    def __delitem__(self, key: Element) -> None:
        self.delete(key)

    def __contains__(self, key: Element) -> bool:
        return self.lookup(key) is not None

    def number(self, key: Element) -> int:
        """The value as an integer, summed up over CPUs in a per-CPU map. Raises KeyError, BpfError."""
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        size, stride = self.shape.value_size, self.value_stride
        return sum(int.from_bytes(value[at : at + size], "little") for at in range(0, len(value), stride))

    def _decode_value(self, value: bytes) -> object:
        if not self.percpu:
            return _decode(value, self.value_format)
        size, stride = self.shape.value_size, self.value_stride
        return [_decode(value[at : at + size], self.value_format) for at in range(0, len(value), stride)]

    def _value_buffer(self, value: Element | list[Element]) -> ctypes.Array[ctypes.c_char]:
        size, stride = self.shape.value_size, self.value_stride
        if not self.percpu:
            if isinstance(value, list):
                raise TypeError("a list of values is for per-CPU maps")
            return self._buffer(value, stride, self.value_format)
        if isinstance(value, list):
            parts = [bytes(self._buffer(each, size, self.value_format)) for each in value]
        else:
            parts = [bytes(self._buffer(value, size, self.value_format))] * possible_cpus()
        raw = b"".join(part.ljust(stride, b"\0") for part in parts)
        return ctypes.create_string_buffer(raw, len(raw))

    def _buffer(self, element: Element, size: int, fmt: str | None) -> ctypes.Array[ctypes.c_char]:
        if isinstance(element, tuple):
            raw = struct.pack(fmt or "=" + "I" * len(element), *element)
        elif isinstance(element, int):
            raw = (
                struct.pack(fmt, element)
                if fmt
                else (element & ((1 << size * 8) - 1)).to_bytes(size, "little")
            )
        else:
            raw = bytes(element)
        if len(raw) > size and not isinstance(element, bytes | bytearray):
            raise ValueError(f"{element!r} takes {len(raw)} bytes, the map has {size}")
        return ctypes.create_string_buffer(raw, max(size, len(raw)))


def _decode(raw: bytes, fmt: str | None) -> object:
    if fmt is not None:
        fields = struct.unpack_from(fmt, raw)
        return fields[0] if len(fields) == 1 else fields
    return int.from_bytes(raw, "little") if len(raw) in (1, 2, 4, 8) else raw
