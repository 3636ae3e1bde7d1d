# SPDX-License-Identifier: MIT
"""Fragments of configurations, and how it is found out that one did not stick."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.kernels.source.kconfig import (
    FLAVOURS,
    FRAGMENTS,
    Wish,
    configure,
    fragments_of,
    read_fragment,
)

MERGE = """\
#!/bin/sh
# As much of a tree's script as is needed here: options that LOST names vanish.
while [ "$1" != -O ]; do shift; done
out=$2; shift 2
cat "$@" | grep -v -e "^CONFIG_LOST=" -e "=n$" >"$out/.config"
echo "CONFIG_EXTRA=y" >>"$out/.config"
"""


@pytest.mark.parametrize("path", sorted(FRAGMENTS.glob("*.config")), ids=lambda path: path.stem)
def test_every_option_of_a_fragment_has_its_reason_and_stands_there_once(path: Path) -> None:
    wishes = read_fragment(path)
    assert [wish.option for wish in wishes if len(wish.reason) < 3] == []
    assert len({wish.option for wish in wishes}) == len(wishes)


def test_every_fragment_belongs_to_a_flavour() -> None:
    used = {path for flavour in FLAVOURS for path in fragments_of([flavour])}
    assert used == set(FRAGMENTS.glob("*.config"))


def test_flavours_add_their_fragments_behind_the_others() -> None:
    assert [path.stem for path in fragments_of(["debug"])] == ["base", "bpf", "net", "debug"]
    with pytest.raises(KernrigError, match="no flavour 'turbo'"):
        fragments_of(["turbo"])


def test_fragment_is_read_with_reasons_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "mine.config"
    path.write_text(
        '# About it\n\nCONFIG_A=y  # required: nothing works without\nCONFIG_B="x y" # text\nCONFIG_C=n\n'
        "CONFIG_D=y # unless CONFIG_A: as ever\n"
    )
    assert read_fragment(path) == [
        Wish("CONFIG_A", "y", "nothing works without", True, "mine"),
        Wish("CONFIG_B", '"x y"', "text", False, "mine"),
        Wish("CONFIG_C", "n", "", False, "mine"),
        Wish("CONFIG_D", "y", "as ever", False, "mine", "CONFIG_A"),
    ]
    path.write_text("CONFIG_A=y\nCONFIG B\n")
    with pytest.raises(KernrigError, match="line 2: 'CONFIG B'"):
        read_fragment(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that has of a kernel's only what merging touches; its Kconfig files know A, LOST and EXTRA."""
    folder = tmp_path / "tree"
    script = folder / "scripts/kconfig/merge_config.sh"
    script.parent.mkdir(parents=True)
    script.write_text(MERGE)
    script.chmod(0o755)
    (folder / "Kconfig").write_text(
        "config A\n\tbool\nconfig LOST\n\tbool\n\tdepends on MISSING\nconfig EXTRA\n\tbool\n"
    )
    return folder


def merged(tree: Path, *lines: str) -> tuple[Wish, ...]:
    fragment = tree.parent / "asked.config"
    fragment.write_text("\n".join(lines))
    build = tree.parent / "build"
    build.mkdir(exist_ok=True)
    return configure(tree, build, [fragment], ["make"], {"PATH": os.environ["PATH"]}).unknown


def test_what_stuck_is_accepted_and_what_the_kernel_does_not_know_is_told(tree: Path) -> None:
    assert merged(tree, "CONFIG_A=y # one", "CONFIG_GONE=n # a name of old") == ()
    (tree / "scripts/kconfig/merge_config.sh").write_text(MERGE.replace("CONFIG_LOST", "CONFIG_NEWER"))
    assert [wish.option for wish in merged(tree, "CONFIG_A=y # one", "CONFIG_NEWER=y # later")] == [
        "CONFIG_NEWER"
    ]


def test_option_that_did_not_stick_is_an_error_with_fragment_and_dependency(tree: Path) -> None:
    with pytest.raises(KernrigError) as caught:
        merged(tree, "CONFIG_A=y # one", "CONFIG_LOST=y # wanted for a reason")
    text = str(caught.value)
    assert "1 of 2 options did not stick" in text
    assert "CONFIG_LOST=y (asked.config: wanted for a reason): it is n" in text
    assert "depends on MISSING" in text


def test_option_may_go_where_the_other_one_is_set(tree: Path) -> None:
    assert merged(tree, "CONFIG_A=y # one", "CONFIG_LOST=y # unless CONFIG_EXTRA: as ever") == ()
    with pytest.raises(KernrigError, match=r"CONFIG_LOST=y .asked.config: as ever.: it is n"):
        merged(tree, "CONFIG_LOST=y # unless CONFIG_A: as ever")


def test_option_that_is_on_though_it_should_be_off_is_an_error(tree: Path) -> None:
    with pytest.raises(KernrigError, match=r"CONFIG_EXTRA=n .*it is y"):
        merged(tree, "CONFIG_EXTRA=n # not wanted")


def test_required_option_that_the_kernel_does_not_know_is_an_error(tree: Path) -> None:
    (tree / "scripts/kconfig/merge_config.sh").write_text(MERGE.replace("CONFIG_LOST", "CONFIG_NEWER"))
    with pytest.raises(KernrigError, match=r"CONFIG_NEWER=y .*does not know it, and it is required"):
        merged(tree, "CONFIG_NEWER=y # required: what it is all about")
