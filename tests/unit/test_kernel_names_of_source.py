# SPDX-License-Identifier: MIT
"""Names of kernels that are built here."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.kernels.source.names import SourceName, parse


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("tree:/k", SourceName(Path("/k"), None, None, ())),
        ("tree:/k@v6.12~3", SourceName(Path("/k"), None, "v6.12~3", ())),
        ("tree:/k@HEAD+race+debug", SourceName(Path("/k"), None, "HEAD", ("debug", "race"))),
        ("tree:/k+debug+debug", SourceName(Path("/k"), None, None, ("debug",))),
        ("deb-source:6.12", SourceName(None, "6.12", None, ())),
        ("deb-source:7.3+coverage", SourceName(None, "7.3", None, ("coverage",))),
    ],
)
def test_name_is_taken_apart_and_written_again(name: str, parsed: SourceName) -> None:
    assert parse(name) == parsed
    assert parse(str(parsed)) == parsed


def test_folder_that_exists_wins_over_revision_and_flavour(tmp_path: Path) -> None:
    folder = tmp_path / "linux@work+debug"
    folder.mkdir()
    assert parse(f"tree:{folder}") == SourceName(folder, None, None, ())
    assert parse(f"tree:{folder}@v6.12+race") == SourceName(folder, None, "v6.12", ("race",))


def test_configuration_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "a+b.config"
    with pytest.raises(KernrigError, match="there is no configuration"):
        parse(f"tree:/k+config={config}")
    config.touch()
    assert parse(f"tree:/k@HEAD+clang+config={config}") == SourceName(
        Path("/k"), None, "HEAD", ("clang",), config
    )


@pytest.mark.parametrize(
    "name", ["tree:", "deb-source:", "deb-source:6", "deb-source:6.12@v6.12", "debian:6.12"]
)
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(KernrigError, match=r"deb-source:6\.12"):
        parse(name)
