# SPDX-License-Identifier: MIT
"""Which program a detach takes, and what is refused."""

from __future__ import annotations

from scenarios.mprog.requests import Bench


def test_detach_takes_what_stands_at_the_named_place(bench: Bench) -> None:
    """MPROG-DETACH-010 to -015, -017, -020 to -025, -027 to -031, MPROG-VEC-041 to -070, MPROG-QUIRK-005: without a
    program the place decides, with one both must agree; a neighbour that is not there is the anchor itself."""
    bench.check("""
        detach - | 0                 | -   | - | A B*
        detach - | BEFORE            | -   | - | B* C
        detach - | AFTER             | -   | - | A B*
        detach - | BEFORE            | A   | - | B* C
        detach - | BEFORE            | B   | - | B* C
        detach - | BEFORE            | C   | - | EBUSY
        detach - | AFTER             | A   | - | EBUSY
        detach - | AFTER             | B   | - | A B*
        detach - | AFTER             | C   | - | A B*
        detach - | BEFORE ID         | B   | - | B* C
        detach - | AFTER LINK        | b   | - | A B*
        detach - | BEFORE ID LINK    | b   | - | B* C
        detach - | BEFORE AFTER      | -   | - | ERANGE
        detach - | BEFORE AFTER      | B   | - | ERANGE
        detach - | BEFORE AFTER      | X   | - | ENOENT
        detach - | BEFORE            | X   | - | ENOENT
        detach - | AFTER             | X   | - | ENOENT
        detach - | 0                 | A   | - | EINVAL
        detach - | ID                | A   | - | EINVAL
        detach - | LINK              | b   | - | EINVAL
        detach - | ID LINK           | b   | - | EINVAL
        detach - | REPLACE           | -   | - | EINVAL
        detach A | 0                 | -   | - | B* C
        detach B | 0                 | -   | - | EBUSY
        detach C | 0                 | -   | - | A B*
        detach X | 0                 | -   | - | ENOENT
        detach A | BEFORE            | -   | - | ERANGE
        detach A | AFTER             | -   | - | ERANGE
        detach C | BEFORE            | -   | - | ERANGE
        detach C | AFTER             | -   | - | ERANGE
        detach A | BEFORE            | B   | - | B* C
        detach A | BEFORE            | C   | - | ERANGE
        detach A | AFTER             | B   | - | ERANGE
        detach C | AFTER             | B   | - | A B*
        detach C | AFTER             | A   | - | ERANGE
        detach C | BEFORE            | B   | - | ERANGE
        detach A | BEFORE            | A   | - | ERANGE
        detach A | BEFORE AFTER      | B   | - | ERANGE
        detach A | BEFORE            | X   | - | ENOENT
        detach C | AFTER             | X   | - | ENOENT
        detach X | BEFORE            | A   | - | ENOENT
        detach A | 0                 | C   | - | B* C
        detach A | ID                | X   | - | B* C
        detach A | LINK              | b   | - | B* C
        detach C | ID LINK           | b   | - | A B*
        detach A | BEFORE LINK       | b   | - | B* C
        detach C | AFTER LINK        | b   | - | A B*
        detach B | BEFORE            | C   | - | EBUSY
        detach B | AFTER LINK        | x   | - | EBUSY
    """)
