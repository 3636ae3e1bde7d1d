# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from harness.tree import GUEST_MODULES, Tree, guest_package, scenario_files


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def test_scenarios_are_all_files_but_caches_and_hidden_ones(tmp_path: Path) -> None:
    make(
        tmp_path, "scenarios/test_a.py", "scenarios/sub/data.bin", "scenarios/sub/x.bpf.c", "other/test_b.py"
    )
    make(tmp_path, "scenarios/__pycache__/a.pyc", "scenarios/.hidden", "scenarios/.git/config")
    assert set(scenario_files(tmp_path, "scenarios")) == {
        *("scenarios/test_a.py", "scenarios/sub/data.bin", "scenarios/sub/x.bpf.c"),
    }


def test_same_content_makes_the_same_archive_wherever_it_lies(tmp_path: Path) -> None:
    trees = []
    for place in ("one", "two"):
        make(tmp_path / place, "s/test_a.py", "s/test_b.py")
        os.utime(tmp_path / place / "s/test_a.py", (1, len(place)))
        files = scenario_files(tmp_path / place, "s")
        trees.append(Tree(dict(reversed(files.items())) if place == "two" else files, ("s",)))
    one, two = trees
    assert one.digest == two.digest
    assert one.archive() == two.archive()


def test_whatever_the_guest_gets_is_in_the_digest(tmp_path: Path) -> None:
    make(tmp_path, "s/test_a.py")
    files = scenario_files(tmp_path, "s")
    base = Tree(files, ("s",)).digest
    others = [
        Tree({**files, "s/new.py": b""}, ("s",)),
        Tree({"s/test_z.py": files["s/test_a.py"]}, ("s",)),
        Tree(files, ()),
        Tree(files, ("s",), options=("-v",)),
        Tree(files, ("s",), environment={"A": "1"}),
    ]
    (tmp_path / "s/test_a.py").write_text("edited")
    others.append(Tree(scenario_files(tmp_path, "s"), ("s",)))
    assert len({base, *(other.digest for other in others)}) == len(others) + 1


def test_archive_holds_plain_files(tmp_path: Path) -> None:
    make(tmp_path, "s/test_a.py")
    tree = Tree({**scenario_files(tmp_path, "s"), "s/made.py": b"made"}, ("s",))
    with tarfile.open(fileobj=io.BytesIO(tree.archive())) as archive:
        found = {entry.name: (archive.extractfile(entry) or io.BytesIO()).read() for entry in archive}
    assert found == {"s/test_a.py": b"s/test_a.py", "s/made.py": b"made"}
    assert tree.scenario_files == 1


def test_request_tells_the_guest_where_its_modules_are() -> None:
    request = Tree({}, ("s",), ("-v",), {"KERNRIG_X": "1"}).request()
    assert request["environment"] == {"KERNRIG_MODULES": GUEST_MODULES, "KERNRIG_X": "1"}
    assert (request["op"], request["paths"], request["options"]) == ("load", ["s"], ["-v"])


def test_the_guests_half_of_the_package_needs_nothing_of_the_hosts(tmp_path: Path) -> None:
    """It imports by itself, without this checkout: what the guest lacks would be missed here."""
    for name, data in guest_package().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    modules = sorted(
        ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        for path in (tmp_path / "harness").rglob("*.py")
        if path.name != "__init__.py" and path.stem not in ("rehearsal",)
    )
    code = f"""
import importlib, sys
sys.path[:] = [path for path in sys.path if not path.endswith({str(Path(__file__).parents[2])!r})]
sys.path.insert(0, {str(tmp_path)!r})
for name in {modules!r}:
    importlib.import_module(name)
import harness
assert harness.__file__.startswith({str(tmp_path)!r}), harness.__file__
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
