# SPDX-License-Identifier: MIT
"""Programs that the verifier must refuse, and that some kernels did not survive or took for good.

Where one of them is taken, the machine may go down: each stands alone, and its clone is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EACCES

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import Item, call, ldxdw, mov, r0, r1, r6, r7, stxdw
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.bench import Bench, bench_with
from scenarios.kptr.owning_map import SEEN

pytestmark = [pytest.mark.usefixtures("panic_on_oops")]


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with bench_with() as bench:
        yield bench


NUMBERS: dict[str, Callable[[], Item]] = {
    "known": lambda: mov(r7, 1),
    "negative": lambda: mov(r7, -1),
    "read": lambda: ldxdw(r7, r6, 0),
    "unknown": lambda: [call(uapi.BPF_FUNC_get_prandom_u32), mov(r7, r0)],
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_number_is_no_pointer(bench: Bench, number: Callable[[], Item]) -> None:
    """KPTR-ACC-018, KPTR-HAZ-001, KPTR-FIX-001: from 6.5 on, until it was mended, the verifier looked at the types of a
    register that has none, and went down.
    """
    with refused(
        EACCES, log="invalid kptr access, R7 type=scalar expected=ptr_kr_obj or untrusted_ptr_kr_obj"
    ):
        bench.load(bench.value, number(), stxdw(r6, SEEN, r7), mov(r1, 0))
