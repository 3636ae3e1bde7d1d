# SPDX-License-Identifier: MIT
"""The attribute structures and constants against the kernel's own header, compiled."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.guest.bpf import attrs, info, syscall, uapi

HEADER = Path("/usr/include/linux/bpf.h")
needs_header = pytest.mark.skipif(
    not HEADER.exists() or shutil.which("clang") is None, reason="needs clang and linux/bpf.h"
)

# class -> (C type, prefix of the members in it); a member's C name is the field's unless RENAMED
LAYOUT: dict[type[attrs.Attr], tuple[str, str]] = {
    attrs.MapCreate: ("union bpf_attr", ""),
    attrs.MapElem: ("union bpf_attr", ""),
    attrs.MapBatch: ("union bpf_attr", "batch."),
    attrs.ProgLoad: ("union bpf_attr", ""),
    attrs.Obj: ("union bpf_attr", ""),
    attrs.ProgAttach: ("union bpf_attr", ""),
    attrs.TestRun: ("union bpf_attr", "test."),
    attrs.GetId: ("union bpf_attr", ""),
    attrs.InfoByFd: ("union bpf_attr", "info."),
    attrs.ProgQuery: ("union bpf_attr", "query."),
    attrs.RawTracepoint: ("union bpf_attr", "raw_tracepoint."),
    attrs.BtfLoad: ("union bpf_attr", ""),
    attrs.LinkCreate: ("union bpf_attr", "link_create."),
    attrs.LinkCreateTracing: ("union bpf_attr", "link_create."),
    attrs.LinkCreateIter: ("union bpf_attr", "link_create."),
    attrs.LinkCreatePerfEvent: ("union bpf_attr", "link_create."),
    attrs.LinkCreateKprobeMulti: ("union bpf_attr", "link_create."),
    attrs.LinkUpdate: ("union bpf_attr", "link_update."),
    attrs.LinkDetach: ("union bpf_attr", "link_detach."),
    attrs.EnableStats: ("union bpf_attr", "enable_stats."),
    attrs.IterCreate: ("union bpf_attr", "iter_create."),
    attrs.ProgBindMap: ("union bpf_attr", "prog_bind_map."),
    attrs.IterMapInfo: ("union bpf_iter_link_info", "map."),
    attrs.IterCgroupInfo: ("union bpf_iter_link_info", "cgroup."),
    attrs.IterTaskInfo: ("union bpf_iter_link_info", "task."),
    info.RawProgInfo: ("struct bpf_prog_info", ""),
    info.RawMapInfo: ("struct bpf_map_info", ""),
    info.RawBtfInfo: ("struct bpf_btf_info", ""),
    info.RawLinkInfo: ("struct bpf_link_info", ""),
}
RENAMED = {
    (attrs.LinkCreateTracing, "cookie"): "tracing.cookie",
    (attrs.LinkCreatePerfEvent, "bpf_cookie"): "perf_event.bpf_cookie",
    (attrs.LinkCreateKprobeMulti, "multi_flags"): "kprobe_multi.flags",
    (attrs.LinkCreateKprobeMulti, "cnt"): "kprobe_multi.cnt",
    (attrs.LinkCreateKprobeMulti, "syms"): "kprobe_multi.syms",
    (attrs.LinkCreateKprobeMulti, "addrs"): "kprobe_multi.addrs",
    (attrs.LinkCreateKprobeMulti, "cookies"): "kprobe_multi.cookies",
    (attrs.ProgQuery, "count"): "prog_cnt",  # its name up to 6.5
}
BITFIELDS = {(info.RawProgInfo, "gpl_compatible")}

# Members that a 6.1 header (Debian 12) lacks, with their offsets in include/uapi/linux/bpf.h of Linux 7.3.
NEWER: dict[tuple[type[attrs.Attr], str], int] = {
    (attrs.MapCreate, "value_type_btf_obj_fd"): 72,
    (attrs.MapCreate, "map_token_fd"): 76,
    (attrs.MapCreate, "excl_prog_hash"): 80,
    (attrs.MapCreate, "excl_prog_hash_size"): 88,
    (attrs.ProgLoad, "log_true_size"): 140,
    (attrs.ProgLoad, "prog_token_fd"): 144,
    (attrs.ProgLoad, "fd_array_cnt"): 148,
    (attrs.ProgLoad, "signature"): 152,
    (attrs.ProgLoad, "signature_size"): 160,
    (attrs.ProgLoad, "keyring_id"): 164,
    (attrs.Obj, "path_fd"): 16,
    (attrs.ProgAttach, "relative_fd"): 20,
    (attrs.ProgAttach, "expected_revision"): 24,
    (attrs.GetId, "fd_by_id_token_fd"): 12,
    (attrs.ProgQuery, "prog_attach_flags"): 32,
    (attrs.ProgQuery, "link_ids"): 40,
    (attrs.ProgQuery, "link_attach_flags"): 48,
    (attrs.ProgQuery, "revision"): 56,
    (attrs.RawTracepoint, "cookie"): 16,
    (attrs.BtfLoad, "btf_log_true_size"): 28,
    (attrs.BtfLoad, "btf_flags"): 32,
    (attrs.BtfLoad, "btf_token_fd"): 36,
    (attrs.LinkCreateMprog, "relative_fd"): 16,
    (attrs.LinkCreateMprog, "expected_revision"): 24,
    (attrs.ProgAssocStructOps, "map_fd"): 0,
    (attrs.ProgAssocStructOps, "prog_fd"): 4,
    (attrs.ProgAssocStructOps, "flags"): 8,
    (info.RawMapInfo, "btf_vmlinux_id"): 76,
    (info.RawMapInfo, "hash"): 88,
    (info.RawMapInfo, "hash_size"): 96,
    (info.RawLinkInfo, "arm"): 16,
}


def own_fields(cls: type[attrs.Attr]) -> list[str]:
    return [name for name in cls._names() if not name.startswith("_")]


def compiled(tmp_path: Path, body: str, header: str = "") -> str:
    source, binary = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/bpf.h>\n#include <linux/if_link.h>\n"
        f"#include <linux/btf.h>\n{header}int main(void) {{\n{body}\nreturn 0;\n}}\n"
    )
    subprocess.run(["clang", "-w", "-o", binary, source], check=True, timeout=60)
    return subprocess.run([binary], check=True, capture_output=True, text=True, timeout=10).stdout


def has_members(tmp_path: Path, members: list[tuple[str, str]]) -> list[bool]:
    """Which (type, member) pairs the host's header knows, by clang's own errors, one compilation for all."""
    source = tmp_path / "members.c"
    lines = [f"size_t m{i} = offsetof({ctype}, {member});" for i, (ctype, member) in enumerate(members)]
    source.write_text("#include <stddef.h>\n#include <linux/bpf.h>\n#line 1\n" + "\n".join(lines) + "\n")
    command = ["clang", "-ferror-limit=0", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    bad = {int(line) for line in re.findall(r"members\.c:(\d+):\d+: error", done.stderr)}
    return [i + 1 not in bad for i in range(len(members))]


@needs_header
def test_offsets_are_the_headers(tmp_path: Path) -> None:
    places = []
    for cls, (ctype, prefix) in LAYOUT.items():
        for name in own_fields(cls):
            if (cls, name) not in BITFIELDS:
                member = prefix + RENAMED.get((cls, name), name)
                places.append((cls, name, ctype, member))
    known = has_members(tmp_path, [(ctype, member) for _, _, ctype, member in places])
    unknown = {(cls, name) for (cls, name, _, _), ok in zip(places, known, strict=True) if not ok}
    assert unknown <= set(NEWER), "the header lacks members that no literal offset stands in for"
    checked = [place for place, ok in zip(places, known, strict=True) if ok]
    body = "\n".join(
        f'printf("%zu %zu\\n", offsetof({ctype}, {member}), sizeof((({ctype} *)0)->{member}));'
        for _, _, ctype, member in checked
    )
    lines = compiled(tmp_path, body).splitlines()
    wrong = []
    for (cls, name, _, member), line in zip(checked, lines, strict=True):
        offset, size = map(int, line.split())
        ours = getattr(cls, name)
        if (ours.offset, ours.size) != (offset, size):
            wrong.append(f"{cls.__name__}.{name}: {ours.offset}+{ours.size}, {member} is {offset}+{size}")
    assert not wrong
    assert len(checked) > 150


@pytest.mark.parametrize(("cls", "name"), NEWER, ids=lambda part: getattr(part, "__name__", part))
def test_offsets_of_newer_members(cls: type[attrs.Attr], name: str) -> None:
    assert getattr(cls, name).offset == NEWER[cls, name]


@needs_header
def test_constants_are_the_headers(tmp_path: Path) -> None:
    text = "".join((HEADER.parent / header).read_text() for header in ("bpf.h", "if_link.h", "btf.h"))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    known = set(re.findall(r"\b[A-Z][A-Z0-9_a-z]+\b", text))
    functions = {f"BPF_FUNC_{name}" for name in re.findall(r"\bFN\((\w+)", text)}
    constants = {n: v for n, v in vars(uapi).items() if isinstance(v, int) and (n in known or n in functions)}
    assert len(constants) > 400
    lines = compiled(tmp_path, "\n".join(f'printf("%lld\\n", (long long){n});' for n in constants)).split()
    wrong = {n: (v, int(c)) for (n, v), c in zip(constants.items(), lines, strict=True) if v != int(c)}
    assert not wrong


def test_the_full_union_is_sent_whatever_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[bytes, int]] = []

    def fake(number: object, cmd: object, buffer: ctypes.Array[ctypes.c_char], size: ctypes.c_uint) -> int:
        sent.append((buffer.raw, size.value))
        return 7

    monkeypatch.setattr(syscall, "_libc", lambda: (fake, 321))
    assert syscall.bpf(uapi.BPF_LINK_DETACH, attrs.LinkDetach(link_fd=5)) == 7
    assert sent[-1] == (b"\x05" + bytes(attrs.ATTR_SIZE - 1), attrs.ATTR_SIZE)
    syscall.bpf(uapi.BPF_LINK_DETACH, b"\x01\x02", size=1)
    assert sent[-1] == (b"\x01\x02" + bytes(attrs.ATTR_SIZE - 2), 1)
    syscall.bpf(uapi.BPF_LINK_DETACH, b"x", size=4000)
    assert sent[-1] == (b"x" + bytes(3999), 4000)


def test_outputs_come_back_even_when_the_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(number: object, cmd: object, buffer: ctypes.Array[ctypes.c_char], size: object) -> int:
        ctypes.memmove(ctypes.addressof(buffer) + attrs.ProgQuery.count.offset, b"\x09", 1)  # type: ignore[attr-defined]
        ctypes.set_errno(28)
        return -1

    monkeypatch.setattr(syscall, "_libc", lambda: (fake, 321))
    query = attrs.ProgQuery(target_ifindex=1, attach_type=uapi.BPF_TCX_INGRESS, count=3)
    with pytest.raises(syscall.BpfError) as caught:
        syscall.bpf(uapi.BPF_PROG_QUERY, query)
    assert query.count == 9
    assert caught.value.errno_name == "ENOSPC"
    assert "BPF_PROG_QUERY" in str(caught.value)
    assert "attach_type=BPF_TCX_INGRESS" in str(caught.value)


def test_errors_name_what_libc_does_not_know() -> None:
    error = syscall.BpfError(syscall.ENOTSUPP, "BPF_MAP_CREATE", log="why\nand how")
    assert "ENOTSUPP (524)" in str(error)
    assert "    and how" in str(error)
    assert syscall.errno_name(95) in ("EOPNOTSUPP", "ENOTSUP")
    assert syscall.errno_name(9999) == "errno 9999"


def test_refused_accepts_only_the_named_errno_and_log() -> None:
    with syscall.refused(22, log="must be referenced") as refusal:
        raise syscall.BpfError(22, "BPF_PROG_LOAD", log="R2 must be referenced")
    assert refusal.error.command == "BPF_PROG_LOAD"
    with pytest.raises(AssertionError, match="expected EPERM, got"), syscall.refused(1):
        raise syscall.BpfError(22, "BPF_PROG_LOAD")
    with pytest.raises(AssertionError, match="matches 'other'"), syscall.refused(22, log="other"):
        raise syscall.BpfError(22, "BPF_PROG_LOAD", log="this")
    with pytest.raises(AssertionError, match="accepted"), syscall.refused(22):
        print("a body that does not raise")


def test_unknown_fields_are_refused_and_aliases_are_not() -> None:
    with pytest.raises(TypeError, match="has no field map_tpye"):
        attrs.MapCreate(map_tpye=1)
    assert attrs.LinkCreateMprog(target_ifindex=4, relative_id=9).relative_fd == 9
    assert attrs.LinkCreateMprog(target_ifindex=4).target_fd == 4
