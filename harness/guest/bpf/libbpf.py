# SPDX-License-Identifier: MIT
"""libbpf.so.1 by ctypes: loaded at first use, prototypes declared, its messages captured."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Any

from harness.errors import KernrigError
from harness.guest.bpf.syscall import BpfError

_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__load_from_kernel_by_id_split": (c_void_p, (c_uint32, c_void_p)),
    "btf__parse_raw": (c_void_p, (c_char_p,)),
    "btf__new": (c_void_p, (c_void_p, c_uint32)),
    "btf__free": (None, (c_void_p,)),
    "btf__find_by_name_kind": (c_int, (c_void_p, c_char_p, c_uint32)),
    "btf__type_by_id": (c_void_p, (c_void_p, c_uint32)),
    "btf__type_cnt": (c_uint32, (c_void_p,)),
    "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
    "btf__resolve_size": (ctypes.c_int64, (c_void_p, c_uint32)),
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_map_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_pin_path": (c_int, (c_void_p, c_char_p)),
    "bpf_map__attach_struct_ops": (c_void_p, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, ctypes.POINTER(c_size_t))),
    "bpf_tc_hook_create": (c_int, (c_void_p,)),
    "bpf_tc_hook_destroy": (c_int, (c_void_p,)),
    "bpf_tc_attach": (c_int, (c_void_p, c_void_p)),
    "bpf_tc_detach": (c_int, (c_void_p, c_void_p)),
    "bpf_tc_query": (c_int, (c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, ctypes.c_bool)),
    "bpf_program__set_attach_target": (c_int, (c_void_p, c_int, c_char_p)),
    "bpf_program__set_expected_attach_type": (c_int, (c_void_p, c_int)),
    "bpf_program__set_type": (c_int, (c_void_p, c_int)),
    "bpf_program__set_flags": (c_int, (c_void_p, c_uint32)),
    "bpf_program__set_log_level": (c_int, (c_void_p, c_uint32)),
}

# int (*)(enum libbpf_print_level, const char *format, va_list); a va_list parameter arrives as a pointer
_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_messages: list[str] = []


@functools.cache
def libbpf() -> Any:
    """The library, its messages going to `messages` from now on.

    Raises KernrigError if it is not installed.
    """
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernrigError(f"libbpf cannot be loaded: {error}", hint="install the package libbpf1") from error
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print.argtypes, library.libbpf_set_print.restype = (_PRINT,), c_void_p
    library.libbpf_set_print(_keep_message)
    return library


def _keep(level: int, template: bytes, arguments: int) -> int:
    if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO; not LIBBPF_DEBUG
        libc = ctypes.CDLL(None)
        buffer = ctypes.create_string_buffer(1 << 20)
        libc.vsnprintf(buffer, c_size_t(len(buffer)), template, c_void_p(arguments))
        _messages.append(buffer.value.decode(errors="replace"))
    return 0


_keep_message = _PRINT(_keep)  # a global, since the library keeps only its address


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collects libbpf's warnings and notes, a failed program's verifier log among them, while the context
    lasts.
    """
    library_messages = _messages
    libbpf()
    library_messages.clear()
    yield library_messages


def checked(result: int | None, command: str, log: list[str] | None = None, about: str = "") -> int:
    """`result` of a libbpf function that returns a pointer, a count or a negative errno. Raises BpfError."""
    if result is None:
        raise BpfError(ctypes.get_errno(), command, about, "".join(log or ()))
    if result < 0:
        raise BpfError(-result, command, about, "".join(log or ()))
    return result
