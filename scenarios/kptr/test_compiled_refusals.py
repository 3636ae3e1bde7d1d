# SPDX-License-Identifier: MIT
"""What clang and libbpf make of wrong programs in C is refused for what is wrong with them."""

from __future__ import annotations

from errno import EACCES, EINVAL
from pathlib import Path

import pytest

from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.owning_map import owning_map

OBJECT = Path(__file__).with_name("refusals.bpf.o")
GIVEN_AWAY = "must point to|expects ref|must be referenced"

# The program, and what is said of it; no errno where releases differ.
REFUSED: dict[str, tuple[int | None, str]] = {
    # KPTR-XCHG-015 to -017
    "loses_what_came_out": (EINVAL, "Unreleased reference"),
    "forgets_the_test": (None, "Possibly NULL pointer|must point to"),
    "releases_twice": (EINVAL, GIVEN_AWAY),
    # KPTR-XCHG-007, -011, -012
    "exchanges_what_only_sees": (EACCES, "isn't referenced kptr"),
    "releases_what_it_only_sees": (None, GIVEN_AWAY),
    "puts_in_another_type": (EACCES, "invalid kptr access, R2"),
    # KPTR-ACC-008, -010, -019
    "assigns": (EACCES, "store to referenced kptr disallowed"),
    "clears": (EACCES, "store to referenced kptr disallowed"),
    "writes_through": (EACCES, ""),
    "copies_the_value": (EACCES, "accessed indirectly by helper"),
    "hands_the_field_to_a_function": (None, "accessed indirectly by helper"),
}
ACCEPTED = ("whole", "hands_data_to_a_function")
NEEDS = {"puts_in_another_type": "kfunc:bpf_task_from_pid"}


def load(name: str) -> None:
    """Load this program alone. Raises BpfError."""
    with owning_map("kr_obj") as values, Object.open(OBJECT) as object:
        object.tune_map("values", reuse=values)
        object.tune_prog(name, autoload=True)
        object.load()


@pytest.mark.parametrize("name", ACCEPTED)
def test_compiled_program_loads(kr_kptr: KrKptr, name: str) -> None:
    """KPTR-XCHG-008, KPTR-ACC-008: the pattern that the others differ from."""
    load(name)


@pytest.mark.parametrize("name", REFUSED)
def test_compiled_program_is_refused(kr_kptr: KrKptr, name: str) -> None:
    """Sections 3 and 4 of the kptr catalogue; the ids stand in the table."""
    if name in NEEDS and not has(NEEDS[name]):
        pytest.skip(f"this kernel lacks {NEEDS[name]}")
    errno, says = REFUSED[name]
    with refused(*[] if errno is None else [errno], log=says):
        load(name)
