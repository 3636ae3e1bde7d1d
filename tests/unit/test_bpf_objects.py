# SPDX-License-Identifier: MIT
"""What Map, Prog, Link and the mprog families send, seen by a bpf() that only records."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.guest.bpf import cgroup, link, map, mprog, probe, prog, tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import Attr, LinkUpdate, MapElem, ProgAttach, ProgQuery
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.syscall import BpfError

Sent = list[tuple[int, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Calls of bpf() from all modules, each answered with 0."""
    calls: Sent = []

    def record(cmd: int, attr: Attr, size: int | None = None) -> int:
        calls.append((cmd, attr))
        return 0

    for module in (map, prog, link, mprog):
        monkeypatch.setattr(module, "bpf", record)
    return calls


def opened(cls: type[Any], id: int = 0) -> Any:
    made = cls(os.open("/dev/null", os.O_RDONLY))
    made.__dict__["id"] = id
    return made


def map_of(type: int = uapi.BPF_MAP_TYPE_HASH, key_size: int = 4, value_size: int = 8) -> map.Map:
    made: map.Map = opened(map.Map)
    made.__dict__.pop("id")
    made.__dict__["shape"] = SimpleNamespace(type=type, key_size=key_size, value_size=value_size, id=1)
    return made


def memory(attr: MapElem, field: str, size: int) -> bytes:
    return ctypes.string_at(getattr(attr, field), size)


def test_descriptors_close_once_and_say_so() -> None:
    holder = Descriptor(os.open("/dev/null", os.O_RDONLY))
    number = holder.fd
    with holder:
        assert not holder.closed
    holder.close()
    with pytest.raises(ValueError, match="this Descriptor is closed"):
        print(holder.fd)
    with pytest.raises(OSError):
        os.fstat(number)
    other = Descriptor(os.open("/dev/null", os.O_RDONLY))
    number = other.release()
    del other
    os.close(number)


def test_dropping_the_last_name_closes() -> None:
    holder = Descriptor(os.open("/dev/null", os.O_RDONLY))
    number = holder.fd
    del holder
    with pytest.raises(OSError):
        os.fstat(number)


def test_keys_and_values_are_packed_by_size(sent: Sent) -> None:
    with map_of() as made:
        made[5] = -1
        made.update(b"abcd", (1, 2), flags=uapi.BPF_NOEXIST)
    (cmd, first), (_, second) = sent
    assert cmd == uapi.BPF_MAP_UPDATE_ELEM
    assert memory(first, "key", 4) == b"\x05\0\0\0"
    assert memory(first, "value", 8) == b"\xff" * 8
    assert memory(second, "key", 4) == b"abcd"
    assert memory(second, "value", 8) == b"\x01\0\0\0\x02\0\0\0"
    assert second.flags == uapi.BPF_NOEXIST


def test_formats_decide_what_comes_out() -> None:
    assert map._decode(b"\x01\0\0\0\x02\0\0\0", "=II") == (1, 2)
    assert map._decode(b"\xff\xff\xff\xff", "=i") == -1
    assert map._decode(b"\x05\0", None) == 5
    assert map._decode(b"\x05\0\0", None) == b"\x05\0\0"


def test_percpu_values_take_a_stride_of_eight_each(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map, "possible_cpus", lambda: 3)
    with map_of(uapi.BPF_MAP_TYPE_PERCPU_ARRAY, value_size=4) as made:
        made[0] = 7
        made[0] = [1, 2, 3]
        assert memory(sent[0][1], "value", 24) == b"\x07\0\0\0\0\0\0\0" * 3
        assert memory(sent[1][1], "value", 24) == b"".join(bytes([n]) + bytes(7) for n in (1, 2, 3))
        assert made[0] == [0, 0, 0]
    with map_of() as made, pytest.raises(TypeError, match="per-CPU"):
        made[0] = [1, 2]


def test_too_long_a_key_is_refused_before_the_kernel_reads_past_it(sent: Sent) -> None:
    with map_of() as made, pytest.raises(ValueError, match="takes 8 bytes, the map has 4"):
        made[(1, 2)] = 1
    assert not sent


def test_a_refused_program_is_loaded_again_for_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []

    def refuse(cmd: int, attr: Any, size: int | None = None) -> int:
        levels.append(attr.log_level)
        if attr.log_level:
            ctypes.memmove(attr.log_buf, b"R0 !read_ok\0", 12)
        raise BpfError(13, "BPF_PROG_LOAD", attr.describe())

    monkeypatch.setattr(prog, "bpf", refuse)
    with pytest.raises(BpfError, match="R0 !read_ok") as caught:
        prog.Prog.load(asm(exit_()), uapi.BPF_PROG_TYPE_SCHED_CLS)
    assert levels == [0, 1]
    assert "prog_type=BPF_PROG_TYPE_SCHED_CLS" in str(caught.value)


def test_load_passes_code_and_function_info(sent: Sent) -> None:
    prog.Prog.load(
        asm(mov(r0, 0), exit_()), uapi.BPF_PROG_TYPE_SYSCALL, name="demo", func_info=[(0, 9)]
    ).release()
    ((_, attr),) = sent
    assert (attr.insn_cnt, attr.func_info_cnt, attr.func_info_rec_size) == (2, 1, 8)
    assert ctypes.string_at(attr.insns, 16) == bytes.fromhex("b700000000000000 9500000000000000")
    assert ctypes.string_at(attr.func_info, 8) == b"\0\0\0\0\x09\0\0\0"
    assert ctypes.string_at(attr.license) == b"GPL"


def test_relatives_go_by_descriptor_or_id_and_links_are_flagged(sent: Sent) -> None:
    a, other = opened(prog.Prog, id=11), opened(link.Link, id=22)
    tcx.attach(3, a, flags=uapi.BPF_F_BEFORE, relative=a)
    tcx.attach(3, a, flags=uapi.BPF_F_AFTER | uapi.BPF_F_ID, relative=other)
    tcx.attach(3, a, replace=a, expected_revision=5)
    tcx.detach(3, relative_id=7, flags=uapi.BPF_F_ID)
    cmds, attrs = zip(*sent, strict=True)
    assert cmds == (uapi.BPF_PROG_ATTACH,) * 3 + (uapi.BPF_PROG_DETACH,)
    first, second, third, fourth = attrs
    assert isinstance(first, ProgAttach)
    assert (first.target_ifindex, first.attach_type) == (3, uapi.BPF_TCX_INGRESS)
    assert (first.attach_flags, first.relative_fd) == (uapi.BPF_F_BEFORE, a.fd)
    assert second.attach_flags == uapi.BPF_F_AFTER | uapi.BPF_F_ID | uapi.BPF_F_LINK
    assert second.relative_id == 22
    assert (third.attach_flags, third.replace_bpf_fd, third.expected_revision) == (
        uapi.BPF_F_REPLACE,
        a.fd,
        5,
    )
    assert (fourth.attach_bpf_fd, fourth.relative_id, fourth.attach_flags) == (0, 7, uapi.BPF_F_ID)


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[ProgQuery], int]) -> None:
    def reply(cmd: int, attr: ProgQuery, size: int | None = None) -> int:
        errno = answer(attr)
        if errno:
            raise BpfError(errno, "BPF_PROG_QUERY")
        return 0

    monkeypatch.setattr(mprog, "bpf", reply)


def test_query_gives_what_fitted_and_the_arrays_as_they_lay(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_of_which_two_fit(attr: ProgQuery) -> int:
        (ctypes.c_uint32 * 2).from_address(attr.prog_ids)[:] = [8, 9]
        attr.count, attr.revision = 3, 4
        return 28

    answering(monkeypatch, three_of_which_two_fit)
    result = tcx.query(1, count=2, fill=0xDEAD, tolerate=(28,))
    assert (result.errno, result.count, result.revision) == (28, 3, 4)
    assert result.prog_ids == [8, 9]
    assert result.arrays["prog_ids"][2] == 0xDEAD
    assert result.link_ids == [0xDEAD, 0xDEAD]
    with pytest.raises(BpfError, match="ENOSPC"):
        tcx.query(1, count=2)


def test_arrays_that_are_not_asked_for_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def note(attr: ProgQuery) -> int:
        seen.append((attr.prog_ids, attr.link_ids))
        return 0

    answering(monkeypatch, note)
    tcx.query(1, arrays=())
    cgroup.query(1)
    assert seen[0] == (0, 0)
    assert seen[1][0] != 0
    assert seen[1][1] == 0


def test_targets_are_numbers_names_or_objects() -> None:
    for target in (1, "lo", SimpleNamespace(ifindex=1), SimpleNamespace(index=1)):
        with mprog.device(target) as number:
            assert number == 1
    with mprog.cgroup_directory("/tmp") as fd:
        assert os.path.samestat(os.fstat(fd), Path("/tmp").stat())
    with pytest.raises(OSError):
        os.fstat(fd)


def test_naming_the_old_program_asks_for_replacement(sent: Sent) -> None:
    holder, new, old = opened(link.Link), opened(prog.Prog), opened(prog.Prog)
    holder.update(new, old=old)
    holder.update(new)
    (_, first), (_, second) = sent
    assert isinstance(first, LinkUpdate)
    assert (first.flags, first.old_prog_fd, first.new_prog_fd) == (uapi.BPF_F_REPLACE, old.fd, new.fd)
    assert (second.flags, second.old_map_fd) == (0, 0)


def test_a_missing_feature_skips_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    probe.has.cache_clear()
    monkeypatch.setattr(probe, "FEATURES", {"old": lambda: True, "new": lambda: False})
    probe.require("old")
    with pytest.raises(pytest.skip.Exception, match="this kernel lacks new"):
        probe.require("old", "new")
    with pytest.raises(KeyError):
        probe.has("no_such_feature")
    with pytest.raises(KeyError):
        probe.has("version:6.12")
    probe.has.cache_clear()


def test_everything_imports_on_the_host_without_loading_libbpf() -> None:
    script = (
        "import importlib, pathlib, harness.guest.bpf as package\n"
        "for path in pathlib.Path(package.__file__).parent.glob('*.py'):\n"
        "    importlib.import_module(f'harness.guest.bpf.{path.stem}')\n"
        "assert 'libbpf' not in pathlib.Path('/proc/self/maps').read_text()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
