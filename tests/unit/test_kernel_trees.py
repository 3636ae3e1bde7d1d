# SPDX-License-Identifier: MIT
"""Snapshots of kernel trees: the user's tree is read, never written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.errors import KernrigError
from harness.kernels.source.build import first_error
from harness.kernels.source.trees import snapshot


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that looks like a kernel's: two commits, and what a build leaves."""
    folder = tmp_path / "linux"
    (folder / "scripts/kconfig").mkdir(parents=True)
    for name, text in (
        ("Kbuild", "obj-y\n"),
        (".gitignore", "*.o\n"),
        ("scripts/kconfig/Makefile", "#\n"),
        ("a.c", "1\n"),
    ):
        (folder / name).write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    (folder / "a.c").write_text("2\n")
    git(folder, "commit", "-qam", "two")
    (folder / "a.o").write_text("object\n")
    return folder


def state_of(folder: Path) -> list[str]:
    """Every file with its content, and its time where it is not git's: git marks objects that somebody asked for."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    times = {path: 0 if ".git" in path.parts else path.stat().st_mtime_ns for path in files}
    return [f"{path.relative_to(folder)} {times[path]} {path.read_bytes()!r}" for path in files]


def test_clean_tree_is_its_commit_and_changes_make_another_one(tree: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    head = git(tree, "rev-parse", "HEAD")
    clean = snapshot(tree, None, cache=cache)
    assert (
        clean.content == git(tree, "rev-parse", "HEAD^{tree}") == snapshot(tree, "main", cache=cache).content
    )
    assert clean.version == head[:12]
    (tree / "a.c").write_text("3\n")
    (tree / "new.c").write_text("new\n")
    changed = snapshot(tree, None, cache=cache)
    assert changed.content != clean.content
    assert "with changes" in changed.version
    copy = changed.copy_to(tmp_path / "copy")
    assert {path.name: path.read_text() for path in copy.glob("*.c")} == {"a.c": "3\n", "new.c": "new\n"}
    assert not (copy / "a.o").exists()


def test_copy_follows_revisions_and_touches_only_what_differs(tree: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    folder = tmp_path / "copy"
    snapshot(tree, "HEAD~1", cache=cache).copy_to(folder)
    before = (folder / "Kbuild").stat()
    assert (folder / "a.c").read_text() == "1\n"
    snapshot(tree, "HEAD", cache=cache).copy_to(folder)
    assert (folder / "a.c").read_text() == "2\n"
    assert (folder / "Kbuild").stat().st_mtime_ns == before.st_mtime_ns


def test_users_tree_and_repository_are_not_changed(tree: Path, tmp_path: Path) -> None:
    (tree / "a.c").write_text("4\n")
    before = state_of(tree)
    cache = Cache(tmp_path / "cache")
    for rev in (None, "HEAD~1"):
        snapshot(tree, rev, cache=cache).copy_to(tmp_path / "copy")
    assert state_of(tree) == before


def test_tree_without_git_is_taken_whole_even_if_a_gitignore_names_everything(
    tree: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    subprocess.run(["cp", "-r", str(tree), str(plain)], check=True)
    subprocess.run(["rm", "-rf", str(plain / ".git")], check=True)
    (plain / ".gitignore").write_text("/*\n")
    cache = Cache(tmp_path / "cache")
    copy = snapshot(plain, None, cache=cache).copy_to(tmp_path / "copy")
    assert (copy / "a.c").read_text() == "2\n"
    (plain / ".config").touch()
    with pytest.raises(KernrigError, match="has been built in"):
        snapshot(plain, None, cache=cache)


def test_wrong_trees_and_revisions_are_told(tree: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KernrigError, match="is no kernel tree"):
        snapshot(tmp_path, None, cache=cache)
    with pytest.raises(KernrigError, match=r"looking up v9\.9 failed"):
        snapshot(tree, "v9.9", cache=cache)


def test_first_error_of_a_parallel_build_is_shown_with_its_surroundings() -> None:
    log = (
        "  CC      kernel/fork.o\n"
        "kernel/bpf/mprog.c: In function 'bpf_mprog_attach':\n"
        "kernel/bpf/mprog.c:7:3: error: expected ';' before 'return'\n"
        "    7 |   x\n"
        "  CC      kernel/exit.o\n"
        "make[3]: *** [scripts/Makefile.build:229: kernel/bpf/mprog.o] Error 1\n"
        "make: *** [Makefile:251: __sub-make] Error 2\n"
    )
    shown = first_error(log)
    assert "error: expected ';'" in shown
    assert "In function 'bpf_mprog_attach'" in shown
    assert "kernel/exit.o" not in shown
    assert "*** [x] Error 1" in first_error("a\nmake: *** [x] Error 1\n")
