# SPDX-License-Identifier: MIT
"""Functions of a module that give a program bytes: as many as it asked for, as long as it has the object."""

from __future__ import annotations

import errno

import pytest

from harness.guest.bpf.asm import (
    Item,
    jeq,
    label,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r7,
    r8,
    stw,
)
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.kfuncs import Kfuncs

NOTHING: Item = []


@pytest.fixture
def kfuncs(kr_kptr: KrKptr) -> Kfuncs:
    return Kfuncs()


def with_bytes(kfuncs: Kfuncs, use: Item, *, of: str = "kr_obj_bytes", size: Item = NOTHING) -> Item:
    """A program that makes an object, does something with 8 of its bytes (in r8), and releases it."""
    ask = [mov(r1, r7), size or mov(r2, 8), kfuncs.call(of), jeq(r0, 0, "none"), mov(r8, r0)]
    return [kfuncs.new(), ask, use, label("none"), kfuncs.release()]


def test_bytes_are_read_and_written(kfuncs: Kfuncs, kr_kptr: KrKptr) -> None:
    """MODLIFE-REF-006: within their bounds, through pointers of either kind."""
    for function in ("kr_obj_bytes", "kr_obj_const_bytes"):
        write = stw(r8, 4, 5) if function == "kr_obj_bytes" else NOTHING
        with kfuncs.load(with_bytes(kfuncs, [write, ldxw(r3, r8, 4)], of=function)) as program:
            program.test_run(bytes(64))
    assert (kr_kptr.count("created"), kr_kptr.count("live")) == (2, 0)


WRONG = {
    "written": (stw(r8, 0, 5), {"of": "kr_obj_const_bytes"}, errno.EACCES, "cannot write into rdonly_mem"),
    "out of bounds": (ldxw(r3, r8, 8), {}, errno.EACCES, "outside of the allowed memory range"),
    "across the end": (ldxdw(r3, r8, 4), {}, errno.EACCES, "outside of the allowed memory range"),
    "said to be a reference": (
        NOTHING,
        {"of": "kr_obj_owned_bytes"},
        errno.EINVAL,
        "acquire kernel function does not return PTR_TO_BTF_ID",
    ),
    "size not constant": (NOTHING, {"size": ldxw(r2, r7, 4)}, errno.EINVAL, "is not a const"),
}


@pytest.mark.parametrize(("use", "way", "answer", "said"), WRONG.values(), ids=WRONG)
def test_misuse_is_refused(kfuncs: Kfuncs, use: Item, way: dict[str, Item], answer: int, said: str) -> None:
    """MODLIFE-REF-006: while the same program without it is accepted."""
    kfuncs.load(with_bytes(kfuncs, NOTHING)).close()
    with refused(answer, log=said):
        kfuncs.load(with_bytes(kfuncs, use, **way))  # type: ignore[arg-type]


def test_bytes_go_with_their_object(kfuncs: Kfuncs) -> None:
    """MODLIFE-REF-006: once it is released nothing of it may be read."""
    ask = [mov(r1, r7), mov(r2, 8), kfuncs.call("kr_obj_bytes"), mov(r8, r0)]
    after: Item = [jeq(r8, 0, "out"), ldxw(r3, r8, 0)]
    kfuncs.load(
        kfuncs.new(), ask, jeq(r8, 0, "none"), ldxw(r3, r8, 0), label("none"), kfuncs.release()
    ).close()
    with refused(errno.EACCES, log="R8 invalid mem access 'scalar'"):
        kfuncs.load(kfuncs.new(), ask, kfuncs.release(), after)


def test_number_is_no_object(kfuncs: Kfuncs) -> None:
    """MODLIFE-REF-006: nor is one of the kernel's own structures, such as the packet."""
    for argument in (mov(r1, 5), NOTHING):
        with refused(errno.EINVAL, log="STRUCT kr_obj|must be referenced|arg#0"):
            kfuncs.load(argument, mov(r2, 8), kfuncs.call("kr_obj_bytes"))
