# SPDX-License-Identifier: MIT
"""Creating a link: where its program lands, what is refused, and what comes back."""

from __future__ import annotations

from scenarios.mprog.requests import Bench


def test_a_linked_program_lands_at_the_named_place(bench: Bench) -> None:
    """MPROG-LINK-002, -003, -005 to -008, MPROG-QUIRK-004: as a directly attached one does; flag bits that nobody
    knows matter only where no place is named, and there is never an old program to replace."""
    bench.check("""
        link D    | 0                 | -    | - | A B* C D*
        link D    | BEFORE            | -    | - | D* A B* C
        link D    | AFTER             | -    | - | A B* C D*
        link D    | BEFORE            | C    | - | A B* D* C
        link D    | AFTER             | A    | - | A D* B* C
        link D    | BEFORE ID         | B    | - | A D* B* C
        link D    | AFTER ID          | B    | - | A B* D* C
        link D    | BEFORE LINK       | b    | - | A D* B* C
        link D    | AFTER LINK        | b    | - | A B* D* C
        link D    | BEFORE ID LINK    | b    | - | A D* B* C
        link D    | AFTER ID LINK     | b    | - | A B* D* C
        link D    | BEFORE AFTER      | -    | - | ERANGE
        link D    | BEFORE AFTER      | A    | - | ERANGE
        link D    | BEFORE AFTER      | X    | - | ENOENT
        link D    | BEFORE            | X    | - | ENOENT
        link D    | AFTER             | X    | - | ENOENT
        link D    | BEFORE            | D    | - | ENOENT
        link D    | BEFORE ID         | -    | - | ENOENT
        link D    | AFTER ID          | -    | - | ENOENT
        link D    | ID                | -    | - | ENOENT
        link D    | ID                | A    | - | EINVAL
        link D    | ID                | X    | - | EINVAL
        link D    | LINK              | -    | - | EINVAL
        link D    | LINK              | b    | - | EINVAL
        link D    | LINK              | A    | - | EINVAL
        link D    | BEFORE LINK       | A    | - | EINVAL
        link D    | BEFORE ID LINK    | shut | - | ENOENT
        link D    | 0                 | A    | - | EINVAL
        link A    | 0                 | -    | - | EEXIST
        link B    | 0                 | -    | - | EEXIST
        link B    | BEFORE ID LINK    | b    | - | EEXIST
        link X    | AFTER             | D    | - | ENOENT
        link F    | 0                 | -    | - | EINVAL
        link map  | 0                 | -    | - | EINVAL
        link b    | 0                 | -    | - | EINVAL
        link shut | 0                 | -    | - | EBADF
        link D    | UNKNOWN           | -    | - | EINVAL
        link D    | UNKNOWN BEFORE    | -    | - | D* A B* C
        link D    | UNKNOWN AFTER     | A    | - | A D* B* C
        link D    | MULTI PREORDER    | -    | - | EINVAL
        link D    | REPLACE           | -    | - | ENOENT
        link D    | REPLACE BEFORE    | B    | - | ENOENT
        link D    | REPLACE           | shut | - | EBADF
        link A    | REPLACE           | -    | - | EEXIST
    """)
