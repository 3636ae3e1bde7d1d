# SPDX-License-Identifier: MIT
"""BPF programs: loading with every attribute and with the verifier's log in the error, test runs, code read
back.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Code
from harness.guest.bpf.attrs import EnableStats, ProgAssocStructOps, ProgBindMap, ProgLoad, TestRun
from harness.guest.bpf.descriptor import Descriptor, fd_of
from harness.guest.bpf.info import ProgInfo, RawProgInfo, get_info, prog_info
from harness.guest.bpf.syscall import BpfError, bpf

LOG_SIZE = 1 << 20


@dataclass(frozen=True)
class RunResult:
    """What a test run gave: the program's return value, the packet and context afterwards, mean run time in
    ns.
    """

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int


class Prog(Descriptor):
    """A loaded program; `log` is the verifier's, if one was asked for."""

    _GET_FD = uapi.BPF_PROG_GET_FD_BY_ID
    _GET_NEXT = uapi.BPF_PROG_GET_NEXT_ID

    log: str = ""

    @classmethod
    def load(
        cls,
        insns: Code | bytes,
        prog_type: int,
        *,
        license: str = "GPL",
        name: str = "",
        expected_attach_type: int = 0,
        attach_btf_id: int = 0,
        attach_btf_obj_fd: int = 0,
        attach_prog: Prog | int | None = None,
        flags: int = 0,
        log_level: int = 0,
        btf: Descriptor | int | None = None,
        func_info: Sequence[tuple[int, int]] = (),
        line_info: Sequence[tuple[int, int, int, int]] = (),
        fd_array: Sequence[Descriptor | int] = (),
        fd_array_cnt: int = 0,
        ifindex: int = 0,
    ) -> Prog:
        """Load a program; the arguments are BPF_PROG_LOAD's. `ifindex` is the device that is to run it.

        `func_info` are pairs (instruction, BTF id of the FUNC), `line_info` the four fields of struct
        bpf_line_info. A refused load is repeated with the verifier's log on, so that the BpfError raised has
        it.
        """
        code = bytes(insns)
        attr = ProgLoad(
            prog_type=prog_type,
            insn_cnt=len(code) // 8,
            prog_flags=flags,
            prog_name=name.encode(),
            prog_ifindex=ifindex,
            expected_attach_type=expected_attach_type,
            attach_btf_id=attach_btf_id,
            prog_btf_fd=fd_of(btf),
            fd_array_cnt=fd_array_cnt,
        )
        attr.attach_prog_fd = fd_of(attach_prog) or attach_btf_obj_fd
        attr.point("insns", ctypes.create_string_buffer(code, len(code)))
        attr.point("license", ctypes.create_string_buffer(license.encode()))
        if func_info:
            raw = b"".join(struct.pack("=II", *record) for record in func_info)
            attr.func_info_rec_size, attr.func_info_cnt = 8, len(func_info)
            attr.point("func_info", ctypes.create_string_buffer(raw, len(raw)))
        if line_info:
            raw = b"".join(struct.pack("=IIII", *record) for record in line_info)
            attr.line_info_rec_size, attr.line_info_cnt = 16, len(line_info)
            attr.point("line_info", ctypes.create_string_buffer(raw, len(raw)))
        if fd_array:
            attr.point("fd_array", (ctypes.c_int * len(fd_array))(*map(fd_of, fd_array)))
        if log_level:
            return cls._load(attr, log_level)
        try:
            return cls._load(attr, 0)
        except BpfError as first:
            try:
                accepted = cls._load(attr, 1)
            except BpfError as again:
                first.log = again.log
            else:
                accepted.close()
                first.log = "(accepted when it was loaded once more for the log)"
            raise first from None

    @classmethod
    def _load(cls, attr: ProgLoad, log_level: int) -> Prog:
        log = ctypes.create_string_buffer(LOG_SIZE if log_level else 1)
        attr.log_level, attr.log_size = log_level, LOG_SIZE if log_level else 0
        attr.point("log_buf", log if log_level else None)
        try:
            loaded = cls(bpf(uapi.BPF_PROG_LOAD, attr))
        except BpfError as error:
            error.log = log.value.decode(errors="replace")
            raise
        loaded.log = log.value.decode(errors="replace")
        return loaded

    def info(self) -> ProgInfo:
        """The kernel's description, asked for anew. Raises BpfError."""
        return prog_info(self.fd)

    @functools.cached_property
    def id(self) -> int:
        """The kernel's id of this program."""
        return self.info().id

    def xlated(self) -> bytes:
        """The instructions as the verifier rewrote them. Raises BpfError."""
        size = self.info().xlated_prog_len
        code = ctypes.create_string_buffer(size)
        raw = RawProgInfo(xlated_prog_len=size)
        raw.point("xlated_prog_insns", code)
        get_info(self.fd, raw)
        return code.raw

    def jited_functions(self) -> list[range]:
        """Where the JIT has put the program and its subprograms: a range of kernel addresses each; none if it was not
        compiled. Raises BpfError.
        """
        raw = RawProgInfo()
        get_info(self.fd, raw)
        starts, lengths = (
            (ctypes.c_uint64 * raw.nr_jited_ksyms)(),
            (ctypes.c_uint32 * raw.nr_jited_func_lens)(),
        )
        again = RawProgInfo(nr_jited_ksyms=len(starts), nr_jited_func_lens=len(lengths))
        again.point("jited_ksyms", starts)
        again.point("jited_func_lens", lengths)
        get_info(self.fd, again)
        return [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def test_run(
        self,
        data: bytes = b"",
        *,
        ctx: bytes = b"",
        repeat: int = 0,
        flags: int = 0,
        cpu: int = 0,
        data_out: int = 0,
    ) -> RunResult:
        """Run the program on a packet or context (BPF_PROG_TEST_RUN). Raises BpfError.

        `data_out` is how many bytes the packet may have afterwards; 0 means 256 more than before.
        """
        attr = TestRun(prog_fd=self.fd, repeat=repeat, flags=flags, cpu=cpu)
        after = ctypes.create_string_buffer(data_out or len(data) + 256)
        ctx_before, ctx_after = (
            ctypes.create_string_buffer(ctx, len(ctx)),
            ctypes.create_string_buffer(len(ctx)),
        )
        if data:
            attr.data_size_in, attr.data_size_out = len(data), len(after)
            attr.point("data_in", ctypes.create_string_buffer(data, len(data)))
            attr.point("data_out", after)
        if ctx:
            attr.ctx_size_in = attr.ctx_size_out = len(ctx)
            attr.point("ctx_in", ctx_before)
            attr.point("ctx_out", ctx_after)
        try:
            bpf(uapi.BPF_PROG_TEST_RUN, attr)
        except BpfError as first:
            # Syscall, raw tracepoint and struct_ops programs refuse to be asked for a context; syscall
            # programs write it back into the input (net/bpf/test_run.c:bpf_prog_test_run_syscall).
            if not ctx or first.errno != errno.EINVAL:
                raise
            attr.ctx_size_out = 0
            attr.point("ctx_out", None)
            ctx_after = ctx_before
            bpf(uapi.BPF_PROG_TEST_RUN, attr)
        return RunResult(
            retval=attr.retval,
            data=after.raw[: attr.data_size_out] if data else b"",
            ctx=ctx_after.raw,
            duration_ns=attr.duration,
        )

    def bind_map(self, map: Descriptor | int, *, flags: int = 0) -> None:
        """Let the program hold a map it does not use (BPF_PROG_BIND_MAP). Raises BpfError."""
        bpf(uapi.BPF_PROG_BIND_MAP, ProgBindMap(prog_fd=self.fd, map_fd=fd_of(map), flags=flags))

    def associate(self, map: Descriptor | int, *, flags: int = 0) -> None:
        """Tie the program to a struct_ops map (BPF_PROG_ASSOC_STRUCT_OPS), which it holds. Raises BpfError."""
        attr = ProgAssocStructOps(map_fd=fd_of(map), prog_fd=self.fd, flags=flags)
        bpf(uapi.BPF_PROG_ASSOC_STRUCT_OPS, attr)


def enable_stats() -> Descriptor:
    """Count run time and runs of all programs (BPF_ENABLE_STATS) until the result is closed.

    Raises BpfError.
    """
    return Descriptor(bpf(uapi.BPF_ENABLE_STATS, EnableStats(type=uapi.BPF_STATS_RUN_TIME)))
