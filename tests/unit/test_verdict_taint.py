# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from harness.verdict import decode, dirty_taint, letters, new_taint


def test_a_clean_kernel_has_no_flags() -> None:
    assert decode(0) == ()
    assert letters(0) == ""


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(12288, "OE"), (12800, "WOE"), (128, "D"), (16384, "L"), (32, "B"), (1 << 18, "N")],
)
def test_masks_as_the_kernel_gives_them(mask: int, expected: str) -> None:
    assert letters(mask) == expected


def test_only_new_flags_count() -> None:
    assert [flag.letter for flag in new_taint(12288, 12288 | 512)] == ["W"]
    assert new_taint(512, 512) == ()
    assert new_taint(512, 0) == ()


def test_loading_a_test_module_is_not_dirty_but_a_warning_is() -> None:
    assert [flag.letter for flag in dirty_taint(decode(12288 | 512 | 128))] == ["D", "W"]
    assert dirty_taint(decode(12288)) == ()


def test_an_unknown_bit_is_dirty() -> None:
    (flag,) = decode(1 << 40)
    assert flag.dirty
    assert "bit 40" in str(flag)


def test_a_negative_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="never negative"):
        decode(-1)
