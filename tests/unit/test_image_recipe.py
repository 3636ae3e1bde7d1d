# SPDX-License-Identifier: MIT
"""The recipe in images/, and how its files are read."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.image import recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "packages.list").write_text("# a comment\n\nbusybox   a shell\n")
    (tmp_path / "prune.list").write_text("usr/share/*  texts\n!usr/share/keep  used\n")
    (tmp_path / "modules.list").write_text("veth  pairs\n")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "native").mkdir()
    return tmp_path


def test_names_are_read_without_their_reasons(images: Path) -> None:
    what = recipe.read(images)
    assert (what.packages, what.modules) == (("busybox",), ("veth",))


def test_a_name_without_a_reason_is_an_error_that_says_where(images: Path) -> None:
    (images / "modules.list").write_text("veth  pairs\ndummy\n")
    with pytest.raises(KernrigError, match=r"modules\.list:2: 'dummy' gives no reason"):
        recipe.read(images)


@pytest.mark.parametrize("name", ["packages.list", "prune.list", "modules.list", "requirements.txt"])
def test_a_missing_file_is_named(images: Path, name: str) -> None:
    (images / name).unlink()
    with pytest.raises(KernrigError, match=re.escape(name)):
        recipe.read(images)


def test_a_rule_covers_what_lies_below_and_the_last_match_counts(images: Path) -> None:
    what = recipe.read(images)
    assert not what.keeps("usr/share/doc/x/y")
    assert what.keeps("usr/share/keep")
    assert what.keeps("usr/share/keep/below")
    assert what.keeps("usr/share")
    assert what.keeps("usr/lib/x")


def test_the_guest_s_packages_are_those_of_the_host() -> None:
    """Reports are serialised by one pytest and read by the other, so the versions must not drift apart."""
    text = recipe.read().requirements.read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE))
    assert pinned.keys() >= {"pytest", "pyroute2", "pluggy", "iniconfig", "packaging", "pygments"}
    assert pinned == {name: importlib.metadata.version(name) for name in pinned}
    assert len(pinned) == len(re.findall("==", text))


def test_the_first_process_is_executable() -> None:
    assert os.access(recipe.read().overlay / "init", os.X_OK)


def test_what_python_needs_is_not_pruned() -> None:
    what = recipe.read()
    for path in (
        "usr/bin/python3.13",
        "usr/lib/python3.13/asyncio/__init__.py",
        "usr/lib/python3.13/encodings",
    ):
        assert what.keeps(path), path
    assert what.keeps("usr/lib/python3/dist-packages/pygments/lexers/python.py")
    assert not what.keeps("usr/lib/python3/dist-packages/pygments/lexers/perl.py")
