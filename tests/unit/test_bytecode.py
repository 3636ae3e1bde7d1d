# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import tarfile
from pathlib import Path

from harness.bytecode import Bytecode
from harness.cache import Cache

SOURCES = {
    "scenarios/a/test_x.py": b"x = 1\n",
    "harness/guest/y.py": b"y = 2\n",
    "scenarios/a/z.bpf.c": b"int z;\n",
}
COMPILED = {
    "scenarios/a/__pycache__/test_x.cpython-313-pytest-9.2.0.pyc": b"X",
    "harness/guest/__pycache__/y.cpython-313.pyc": b"Y",
}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_what_a_guest_compiled_comes_back_for_the_same_sources(tmp_path: Path) -> None:
    bytecode = Bytecode(Cache(tmp_path))
    assert bytecode.of(SOURCES) == {}
    bytecode.keep(packed(COMPILED), SOURCES)
    assert bytecode.of(SOURCES) == COMPILED


def test_an_edited_source_has_none_and_the_others_keep_theirs(tmp_path: Path) -> None:
    bytecode = Bytecode(Cache(tmp_path))
    bytecode.keep(packed(COMPILED), SOURCES)
    edited = SOURCES | {"scenarios/a/test_x.py": b"x = 3\n"}
    assert bytecode.of(edited) == {"harness/guest/__pycache__/y.cpython-313.pyc": b"Y"}


def test_what_belongs_to_no_source_is_not_kept(tmp_path: Path) -> None:
    bytecode = Bytecode(Cache(tmp_path))
    strange = {
        "../../__pycache__/evil.cpython-313.pyc": b"E",
        "scenarios/a/__pycache__/other.cpython-313.pyc": b"O",
        "scenarios/a/__pycache__/test_x.txt": b"T",
    }
    bytecode.keep(packed(strange), SOURCES)
    assert bytecode.of(SOURCES) == {}
    assert list((tmp_path / "state" / "bytecode").iterdir()) == []
