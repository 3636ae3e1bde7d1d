# SPDX-License-Identifier: MIT
"""A context of the kernel's cryptography that a map owns: made by one program, used by others on packets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EINVAL, ENOENT, EOPNOTSUPP

import pytest

from harness.errors import KernrigError
from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    add,
    asm,
    call,
    exit_,
    jeq,
    label,
    ld_map_value,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r8,
    r10,
    stdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from scenarios.kptr.bench import kfunc
from scenarios.kptr.kfuncs import exchange, value_of
from scenarios.kptr.owning_map import OWNED, owning_map

pytestmark = pytest.mark.requires("kfunc:bpf_crypto_ctx_create")
PARAMETERS = struct.Struct("=14s2x128s256sII")
"""struct bpf_crypto_params: kind, algorithm, key, its length, length of the tag (kernel/bpf/crypto.c)."""
# FIPS-197, appendix C.1
KEY, PLAIN = bytes(range(16)), bytes.fromhex("00112233445566778899aabbccddeeff")
CIPHER = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
CIPHER_OF_ZEROS = bytes.fromhex("66e94bd4ef8a2c3b884cfa59ca342b2e")
"""By a key of zeros: the first value of the tables for GCM, test case 1."""


@pytest.fixture
def parameters() -> Iterator[Map]:
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, PARAMETERS.size, 1) as map:
        yield map


@pytest.fixture
def texts() -> Iterator[Map]:
    """What goes in, and behind it what comes out."""
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 32, 1) as map:
        yield map


@pytest.fixture
def owner() -> Iterator[Map]:
    with owning_map("bpf_crypto_ctx") as map:
        yield map


def load(*items: Item, sleepable: bool = True) -> Prog:
    """A program that returns r8, which starts at zero. Raises BpfError."""
    code = asm(mov(r8, 0), *items, label("out"), mov(r0, r8), exit_())
    if sleepable:
        return Prog.load(code, uapi.BPF_PROG_TYPE_SYSCALL, flags=uapi.BPF_F_SLEEPABLE)
    return Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)


def create(parameters: Map) -> Item:
    """r7 = a context, or the program ends with the error in r8."""
    return [
        stdw(r10, -8, 0),
        ld_map_value(r1, parameters),
        mov(r2, PARAMETERS.size),
        mov(r3, r10),
        add(r3, -8),
        kfunc("bpf_crypto_ctx_create"),
        ldxw(r8, r10, -8),
        jeq(r0, 0, "out"),
        mov(r7, r0),
    ]


def release() -> Item:
    return [mov(r1, r0), kfunc("bpf_crypto_ctx_release")]


def made(
    owner: Map, parameters: Map, kind: bytes = b"skcipher", algorithm: bytes = b"ecb(aes)", key: bytes = KEY
) -> int:
    """Let the map own a new context; the error, or 0."""
    parameters.update(0, PARAMETERS.pack(kind, algorithm, key, len(key), 0))
    with load(
        value_of(owner), create(parameters), exchange(mov(r2, r7)), jeq(r0, 0, "out"), release()
    ) as prog:
        result = prog.test_run().retval
    return result - (1 << 32) if result >> 31 else result


def memory(texts: Map, at: int, stack: int) -> Item:
    """A dynptr to 16 bytes of the texts, in the stack."""
    return [
        ld_map_value(r1, texts, at),
        mov(r2, 16),
        mov(r3, 0),
        mov(r4, r10),
        add(r4, stack),
        call(uapi.BPF_FUNC_dynptr_from_mem),
    ]


def apply(owner: Map, texts: Map, verb: str) -> Item:
    """r8 = what bpf_crypto_VERB says; -1 without a context."""
    return [
        memory(texts, 0, -32),
        memory(texts, 16, -48),
        value_of(owner),
        mov(r8, -1),
        ldxdw(r1, r6, OWNED),
        jeq(r1, 0, "out"),
        mov(r2, r10),
        add(r2, -32),
        mov(r3, r10),
        add(r3, -48),
        mov(r4, 0),
        kfunc(f"bpf_crypto_{verb}"),
        mov(r8, r0),
    ]


@pytest.fixture
def skcipher(owner: Map, parameters: Map) -> None:
    """The kind of context that there is, or a skip."""
    try:
        modules.modprobe("bpf_crypto_skcipher")
    except KernrigError:
        pass  # it may be built in
    if made(owner, parameters) == -ENOENT:
        pytest.skip("this kernel has no skcipher for programs")


def test_stashed_context_is_used_on_packets(skcipher: None, owner: Map, parameters: Map, texts: Map) -> None:
    """KPTR-MAP-029, KPTR-ACC-001: with a text whose cipher is known; a new key takes the place of the old one."""
    with (
        load(apply(owner, texts, "encrypt"), sleepable=False) as encrypt,
        load(apply(owner, texts, "decrypt"), sleepable=False) as decrypt,
    ):
        texts.update(0, PLAIN + bytes(16))
        assert encrypt.test_run(bytes(64)).retval == 0
        assert texts.lookup(0) == PLAIN + CIPHER
        texts.update(0, CIPHER + bytes(16))
        assert decrypt.test_run(bytes(64)).retval == 0
        assert texts.lookup(0) == CIPHER + PLAIN
        assert made(owner, parameters, key=bytes(16)) == 0
        texts.update(0, bytes(32))
        assert encrypt.test_run(bytes(64)).retval == 0
        assert texts.lookup(0) == bytes(16) + CIPHER_OF_ZEROS


def test_context_that_cannot_be_made_is_null_and_the_error_says_why(
    skcipher: None, owner: Map, parameters: Map
) -> None:
    """KPTR-MAP-029: of an unknown kind, an unknown algorithm, a key of no length or of a wrong one."""
    assert made(owner, parameters, kind=b"nobody") == -ENOENT
    assert made(owner, parameters, algorithm=b"nothing(aes)") == -EOPNOTSUPP
    assert made(owner, parameters, key=b"") == -EINVAL
    assert made(owner, parameters, key=b"short") == -EINVAL


def test_context_is_released_or_owned(owner: Map, parameters: Map) -> None:
    """KPTR-MAP-029, KPTR-XCHG-015: made or acquired, it is the program's; only what is tested is used."""
    stored: Item = [value_of(owner), ldxdw(r7, r6, OWNED)]
    acquire: Item = [mov(r1, r7), kfunc("bpf_crypto_ctx_acquire")]
    tested: Item = jeq(r7, 0, "out")
    load(create(parameters), mov(r0, r7), release()).close()
    with refused(EINVAL, log="Unreleased reference"):
        load(create(parameters))
    lock, unlock = kfunc("bpf_rcu_read_lock"), kfunc("bpf_rcu_read_unlock")
    whole: Item = [value_of(owner), lock, ldxdw(r7, r6, OWNED), jeq(r7, 0, "none"), acquire, mov(r7, r0)]
    end: Item = [label("none"), unlock]
    load(whole, jeq(r7, 0, "none"), mov(r0, r7), release(), end).close()
    with refused(EINVAL, log="Unreleased reference"):
        load(whole, end)
    with refused(EINVAL, log="must be a rcu pointer|must be referenced or trusted"):
        load(stored, tested, acquire, jeq(r0, 0, "out"), release())
