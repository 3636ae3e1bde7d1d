# SPDX-License-Identifier: MIT
from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from harness.errors import KernrigError
from harness.splitbtf import FUNC, STRUCT, TYPEDEF, Btf, repeated, without

INT, POINTER, ENUM, FORWARD, CONST, PROTOTYPE, DECL_TAG = 1, 2, 6, 7, 10, 13, 17
ELEMENT = {STRUCT: 3, ENUM: 2, PROTOTYPE: 2}

# Kind, name, size or type, and what follows; a name there is a string.
Entry = tuple[int, str, int, Sequence[int | str]]


def raw(types: Sequence[Entry], base: Btf | None = None) -> bytes:
    """Raw BTF, whose strings go on from those of `base`."""
    first = base.end_string if base else 0
    strings = bytearray(b"" if base else b"\0")

    def place(word: int | str) -> int:
        if not isinstance(word, str):
            return word
        if not word:
            return 0
        strings.extend(word.encode() + b"\0")
        return first + len(strings) - len(word) - 1

    body = b""
    for kind, name, size, rest in types:
        words = [place(word) for word in rest]
        info = kind << 24 | (len(words) // ELEMENT[kind] if kind in ELEMENT else 0)
        body += struct.pack(f"<{3 + len(words)}I", place(name), info, size, *words)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def integer(name: str) -> Entry:
    return (INT, name, 4, [32])


# 1 int, 2 sock {number, next}, 3 pointer to 2, 4 typedef of 2, 5 peer (only declared), 6 user {peer}, 7 pointer to 5
KERNEL: list[Entry] = [
    integer("int"),
    (STRUCT, "sock", 16, ["number", 1, 0, "next", 3, 64]),
    (POINTER, "", 2, []),
    (TYPEDEF, "sock_t", 2, []),
    (FORWARD, "peer", 0, []),
    (STRUCT, "user", 8, ["peer", 7, 0]),
    (POINTER, "", 5, []),
]
BASE = Btf(raw(KERNEL))
FIRST = BASE.end


def split(*types: Entry) -> Btf:
    return Btf(raw(types, BASE), BASE)


def shared(own: Btf) -> Btf:
    """What is left of `own`."""
    return Btf(without(own, repeated(own))[0], BASE)


def copy(at: int, *, offset: int = 64) -> list[Entry]:
    """The kernel's sock and what belongs to it once more, as the types from `at` on; `offset` is that of `next`."""
    return [
        (STRUCT, "sock", 16, ["number", 1, 0, "next", at + 1, offset]),
        (POINTER, "", at, []),
        (TYPEDEF, "sock_t", at, []),
    ]


@pytest.mark.parametrize("data", [b"", b"not BTF at all, but long enough for it", raw([(30, "x", 0, [])])])
def test_what_is_not_btf_is_refused(data: bytes) -> None:
    with pytest.raises(KernrigError, match="reading BTF"):
        Btf(data)


def test_a_modules_types_go_on_where_the_kernels_end() -> None:
    own = split((STRUCT, "obj", 4, ["id", 1, 0]), (PROTOTYPE, "", 0, ["sk", 3]), (FUNC, "get", FIRST + 1, []))
    assert own.named == {(STRUCT, "obj"): [FIRST], (FUNC, "get"): [FIRST + 2]}
    assert (own.find(FUNC, "get"), own.find(STRUCT, "sock"), own.find(STRUCT, "get")) == (FIRST + 2, 2, None)


def test_repeated_types_become_references_to_the_kernels() -> None:
    own = split(
        *copy(FIRST),
        (STRUCT, "obj", 8, ["sk", FIRST + 1, 0]),
        (PROTOTYPE, "", FIRST + 2, ["obj", FIRST + 5]),
        (POINTER, "", FIRST + 3, []),
        (FUNC, "get", FIRST + 4, []),
    )
    assert repeated(own) == {FIRST: 2, FIRST + 1: 3, FIRST + 2: 4}
    left = shared(own)
    assert left.named == {(STRUCT, "obj"): [FIRST], (FUNC, "get"): [FIRST + 3]}
    assert left.type(FIRST).words[1] == 3
    assert left.type(FIRST + 1).size == 4
    assert left.type(FIRST + 1).words[1] == FIRST + 2
    assert [left.shape(FIRST + i) for i in range(4)] == [own.shape(FIRST + 3 + i) for i in range(4)]


def test_what_is_shared_is_shared_once() -> None:
    left = shared(split(*copy(FIRST), (FUNC, "get", FIRST + 2, [])))
    assert not repeated(left)
    assert shared(left).named == left.named


def test_a_type_that_differs_stays_with_all_that_lead_to_it() -> None:
    own = split(*copy(FIRST, offset=32), integer("int"))
    assert repeated(own) == {FIRST + 3: 1}
    assert shared(own).named == {(STRUCT, "sock"): [FIRST], (TYPEDEF, "sock_t"): [FIRST + 2]}


def test_an_integer_of_the_same_name_and_another_size_stays() -> None:
    assert not repeated(split((INT, "int", 8, [64])))


def test_a_declaration_is_the_kernels_definition() -> None:
    own = split((FORWARD, "sock", 0, []), (POINTER, "", FIRST, []), (FUNC, "get", FIRST + 1, []))
    left = shared(own)
    assert left.named == {(FUNC, "get"): [FIRST + 1]}
    assert left.type(FIRST).size == 2


def test_a_definition_stays_where_the_kernel_has_the_declaration_only() -> None:
    own = split(
        (STRUCT, "peer", 4, ["id", 1, 0]),
        (POINTER, "", FIRST, []),
        (STRUCT, "user", 8, ["peer", FIRST + 1, 0]),
    )
    assert shared(own).named == {(STRUCT, "peer"): [FIRST]}


def test_constants_without_a_name_stay_and_qualifiers_without_use_go() -> None:
    own = split(*copy(FIRST), (ENUM, "", 4, ["LIMIT", 7]), (CONST, "", FIRST, []))
    left = shared(own)
    assert left.end == FIRST + 1
    assert left.shape(FIRST)[-2:] == ("LIMIT", 7)


def test_functions_and_tags_are_the_modules_own() -> None:
    own = split(
        (PROTOTYPE, "", 0, []), (FUNC, "get", FIRST, []), (DECL_TAG, "bpf_kfunc", FIRST + 1, [0xFFFFFFFF])
    )
    assert not repeated(own)
    data, numbers = without(own, {})
    assert Btf(data, BASE).named == own.named
    assert numbers == {FIRST + i: FIRST + i for i in range(3)}
