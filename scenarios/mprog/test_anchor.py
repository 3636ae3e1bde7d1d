# SPDX-License-Identifier: MIT
"""The anchor: how a program or link beside which to put another is named and found."""

from __future__ import annotations

from scenarios.mprog.requests import Bench


def test_an_anchor_is_found_by_what_it_is(bench: Bench) -> None:
    """MPROG-ANCHOR-001 to -010, MPROG-VEC-010 to -014, -020 to -022: a program stands for its place whoever owns it,
    a link only for the element that this very link owns, although the program of each is in this list."""
    bench.check("""
        attach D | BEFORE         | -    | - | D A B* C
        attach D | BEFORE         | B    | - | A D B* C
        attach D | BEFORE         | shut | - | EBADF
        attach D | BEFORE         | map  | - | EINVAL
        attach D | BEFORE         | b    | - | EINVAL
        attach D | BEFORE         | F    | - | EINVAL
        attach D | BEFORE ID      | B    | - | A D B* C
        attach D | BEFORE ID      | -    | - | ENOENT
        attach D | BEFORE ID      | shut | - | ENOENT
        attach D | BEFORE ID      | F    | - | EINVAL
        attach D | BEFORE LINK    | b    | - | A D B* C
        attach D | BEFORE LINK    | -    | - | EINVAL
        attach D | BEFORE LINK    | shut | - | EBADF
        attach D | BEFORE LINK    | map  | - | EINVAL
        attach D | BEFORE LINK    | B    | - | EINVAL
        attach D | BEFORE LINK    | f    | - | EINVAL
        attach D | BEFORE LINK    | x    | - | ENOENT
        attach D | BEFORE LINK    | o    | - | ENOENT
        attach D | BEFORE LINK    | z    | - | ENOENT
        attach D | BEFORE LINK    | k    | - | ENOENT
        attach D | BEFORE ID LINK | b    | - | A D B* C
        attach D | BEFORE ID LINK | -    | - | ENOENT
        attach D | BEFORE ID LINK | shut | - | ENOENT
        attach D | BEFORE ID LINK | f    | - | EINVAL
        attach D | AFTER ID LINK  | x    | - | ENOENT
        attach D | AFTER ID LINK  | z    | - | ENOENT
        detach A | BEFORE         | F    | - | EINVAL
        detach A | BEFORE ID      | F    | - | EINVAL
        detach A | BEFORE LINK    | f    | - | EINVAL
        detach A | BEFORE         | shut | - | EBADF
        detach A | BEFORE LINK    | o    | - | ENOENT
        detach - | BEFORE         | map  | - | EINVAL
        detach - | BEFORE LINK    | shut | - | EBADF
        detach - | BEFORE ID LINK | shut | - | ENOENT
        detach - | BEFORE         | F    | - | ENOENT
        detach - | AFTER ID       | F    | - | ENOENT
        detach - | AFTER LINK     | f    | - | ENOENT
        detach - | 0              | F    | - | EINVAL
        detach - | AFTER LINK     | z    | - | ENOENT
        link D   | BEFORE         | F    | - | EINVAL
        link D   | BEFORE LINK    | f    | - | EINVAL
        link D   | BEFORE LINK    | o    | - | ENOENT
        link D   | AFTER LINK     | z    | - | ENOENT
        link D   | BEFORE         | shut | - | EBADF
    """)
