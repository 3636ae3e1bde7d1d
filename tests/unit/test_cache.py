# SPDX-License-Identifier: MIT
"""The store: entries are whole or absent, made once, and damage is noticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cache import Cache, digest
from harness.errors import HostError, KernrigError
from harness.vm.control import TemplateError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def make_entry(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"0123456789")
    (folder / "name").write_text("kernel")
    (folder / "link").symlink_to("sub/data")


def leftovers(cache: Cache) -> list[str]:
    return [str(path) for path in cache.root.rglob(".*") if path.name.startswith((".new-", ".old-"))]


def test_an_entry_is_made_once_and_found_again(cache: Cache) -> None:
    made = cache.build("kernel", "k1", make_entry)
    assert (made / "sub" / "data").read_bytes() == b"0123456789"
    assert cache.get("kernel", "k1") == made

    def never(folder: Path) -> None:
        raise AssertionError("made twice")

    assert cache.build("kernel", "k1", never) == made


def test_a_missing_entry_is_none(cache: Cache) -> None:
    assert cache.get("kernel", "nothing") is None


@pytest.mark.parametrize("bad", ["", ".hidden", "a/b", "..", "a\0b"])
def test_keys_cannot_leave_the_store(cache: Cache, bad: str) -> None:
    with pytest.raises(ValueError, match="not usable"):
        cache.get("kernel", bad)


def truncate(entry: Path) -> None:
    (entry / "sub" / "data").write_bytes(b"01234")


def truncate_as_a_crash_does(entry: Path) -> None:
    before = (entry / "sub" / "data").stat().st_mtime_ns
    truncate(entry)
    os.utime(entry / "sub" / "data", ns=(before, before))


def overwrite(entry: Path) -> None:
    path = entry / "sub" / "data"
    before = path.stat().st_mtime_ns
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(before + 1, before + 1))


def delete_file(entry: Path) -> None:
    (entry / "name").unlink()


def retarget(entry: Path) -> None:
    (entry / "link").unlink()
    (entry / "link").symlink_to("name")


def delete_meta(entry: Path) -> None:
    (entry / "meta.json").unlink()


def garble_meta(entry: Path) -> None:
    (entry / "meta.json").write_bytes(b'{"format": 1, "files": [')


def wrong_meta(entry: Path) -> None:
    (entry / "meta.json").write_bytes(b'{"format": 1, "files": [1], "links": {}}')


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        truncate_as_a_crash_does,
        overwrite,
        delete_file,
        retarget,
        delete_meta,
        garble_meta,
        wrong_meta,
    ],
    ids=lambda f: f.__name__,
)
def test_a_damaged_entry_is_noticed_and_made_again(cache: Cache, damage: object) -> None:
    assert callable(damage)
    entry = cache.build("kernel", "k1", make_entry)
    damage(entry)
    assert cache.get("kernel", "k1") is None
    said: list[str] = []
    again = cache.build("kernel", "k1", make_entry, say=said.append)
    assert (again / "sub" / "data").read_bytes() == b"0123456789"
    assert (again / "link").readlink() == Path("sub/data")
    assert cache.damage("kernel", "k1", thorough=True) is None
    assert len(said) == 1 and "kernel/k1 is damaged" in said[0]
    assert leftovers(cache) == []


def test_a_copied_entry_with_other_times_is_whole(cache: Cache) -> None:
    entry = cache.build("kernel", "k1", make_entry)
    os.utime(entry / "name", (1, 1))
    assert cache.get("kernel", "k1") == entry
    assert (entry / "name").stat().st_mtime > 1


def test_a_changed_bit_under_the_same_time_is_found_by_the_thorough_check(cache: Cache) -> None:
    entry = cache.build("kernel", "k1", make_entry)
    before = (entry / "name").stat().st_mtime_ns
    (entry / "name").write_text("kernem")
    os.utime(entry / "name", ns=(before, before))
    assert cache.damage("kernel", "k1") is None
    assert cache.damage("kernel", "k1", thorough=True) == "name has changed"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_failed_make_leaves_nothing(cache: Cache, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        make_entry(folder)
        raise error

    with pytest.raises(type(error)):
        cache.build("kernel", "k1", fail)
    assert cache.get("kernel", "k1") is None
    assert leftovers(cache) == []
    assert cache.entries() == []
    cache.build("kernel", "k1", make_entry)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_named_and_leaves_nothing(cache: Cache, number: int, wrapped: bool) -> None:
    def fill(folder: Path) -> None:
        make_entry(folder)
        full = OSError(number, os.strerror(number))
        if wrapped:
            raise RuntimeError("unpacking failed") from full
        raise full

    with pytest.raises(HostError, match="full") as caught:
        cache.build("image", "i1", fill)
    assert "KERNRIG_CACHE" in str(caught.value)
    assert leftovers(cache) == []
    assert cache.get("image", "i1") is None


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), RuntimeError("E: Write error - write (28: No space left on device)")],
)
def test_a_full_disk_is_named_when_state_is_updated(cache: Cache, error: Exception) -> None:
    with pytest.raises(HostError, match="full: state/lists"), cache.state("lists"):
        raise error
    with pytest.raises(RuntimeError, match="other"), cache.state("lists"):
        raise RuntimeError("other")


def test_a_guest_without_room_says_nothing_of_our_disk(cache: Cache) -> None:
    def make(_: Path) -> None:
        raise TemplateError("the guest said: write: No space left on device")

    with pytest.raises(TemplateError, match="the guest said"):
        cache.build("image", "i1", make)


def test_other_os_errors_are_passed_on(cache: Cache) -> None:
    def fail(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    with pytest.raises(FileNotFoundError):
        cache.build("image", "i1", fail)


def test_an_unusable_root_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be used") as caught:
        Cache(tmp_path / "file" / "cache").build("image", "i1", make_entry)
    assert "KERNRIG_CACHE" in str(caught.value)


WORKER = """
import os, sys, time
from pathlib import Path
from harness.cache import Cache

root, log = Path(sys.argv[1]), sys.argv[2]

def make(folder):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    deadline = time.monotonic() + 30
    while not Path(log + ".go").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    (folder / "data").write_text("x" * 100)

entry = Cache(root).build("image", "i1", make, say=lambda text: print(text, flush=True))
assert (entry / "data").read_text() == "x" * 100
"""


def start_worker(cache: Cache, log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(cache.root), str(log)],
        text=True,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )


def wait_until_making(log: Path) -> None:
    deadline = time.monotonic() + 20
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline, "nobody started to make the entry"
        time.sleep(0.005)


def test_of_two_processes_one_makes_and_the_other_waits(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start_worker(cache, log) as first:
        wait_until_making(log)
        with start_worker(cache, log) as second:
            assert second.stdout is not None
            assert "waiting for another process" in second.stdout.readline()
            (tmp_path / "log.go").touch()
            assert (first.wait(20), second.wait(20)) == (0, 0)
    assert log.read_text().split() == [str(first.pid)]


def test_a_killed_maker_leaves_its_place_to_the_next(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start_worker(cache, log) as first:
        wait_until_making(log)
        first.kill()
    assert cache.get("image", "i1") is None
    assert cache.entries() == []
    assert len(leftovers(cache)) == 1
    cache.build("image", "i1", make_entry)
    assert leftovers(cache) == []


def test_sweeping_spares_those_at_work(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start_worker(cache, log) as first:
        wait_until_making(log)
        cache.sweep()
        assert len(leftovers(cache)) == 1
        first.kill()
    cache.sweep()
    assert leftovers(cache) == []


def test_waiting_has_an_end(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start_worker(cache, log) as first:
        wait_until_making(log)
        with pytest.raises(KernrigError, match="waited 0 s for another process"):
            cache.build("image", "i1", make_entry, wait_s=0.1)
        first.kill()


def test_entries_are_listed_with_sizes_and_removed(cache: Cache) -> None:
    cache.build("kernel", "b", make_entry)
    cache.build("kernel", "a", make_entry)
    entry = cache.build("image", "i1", make_entry)
    assert [(each.kind, each.key) for each in cache.entries()] == [
        ("image", "i1"),
        ("kernel", "a"),
        ("kernel", "b"),
    ]
    assert all(each.size_bytes >= 16 for each in cache.entries())
    (entry / "sub").chmod(0o500)
    cache.remove("image", "i1")
    cache.remove("image", "i1")
    assert [each.key for each in cache.entries()] == ["a", "b"]
    assert leftovers(cache) == []


def test_pruning_takes_what_nobody_used_for_long_and_spares_the_latest(cache: Cache) -> None:
    now = time.time()
    for key, days in (("new", 0), ("older", 4), ("old", 5), ("oldest", 6), ("fetched", 9)):
        entry = cache.build("kernel", key, make_entry)
        os.utime(entry, (now, now - days * 86400.0))
    cache.prune("kernel", keep=2, idle_s=86400.0, which=lambda path: path.name != "fetched")
    assert {each.key for each in cache.entries()} == {"new", "older", "fetched"}
    cache.prune("kernel", keep=0, idle_s=86400.0, which=lambda path: path.name != "fetched")
    assert {each.key for each in cache.entries()} == {"new", "fetched"}
    assert leftovers(cache) == []


def test_pruning_spares_state_that_is_held_or_was_used_lately(cache: Cache) -> None:
    with cache.state("build-1") as held:
        with cache.state("build-2") as used:
            pass
        for folder in (held, used):
            os.utime(folder, (0, 0))
        cache.prune("state", keep=0, idle_s=86400.0)
        assert held.exists()
        assert not used.exists()
    with cache.state("build-1"):
        pass
    cache.prune("state", keep=0, idle_s=86400.0)
    assert held.exists()


def test_state_is_held_by_one_at_a_time_and_kept(cache: Cache) -> None:
    with cache.state("lists") as folder:
        (folder / "index").write_text("packages")
        with pytest.raises(KernrigError, match="state/lists"), cache.state("lists", wait_s=0.05):
            pass
    with cache.state("lists", wait_s=0.05) as folder:
        assert (folder / "index").read_text() == "packages"
    assert [(each.kind, each.key) for each in cache.entries()] == [("state", "lists")]
    cache.remove("state", "lists")
    assert cache.entries() == []


def test_the_default_root_honours_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERNRIG_CACHE", str(tmp_path / "mine"))
    assert Cache.default().root == tmp_path / "mine"
    monkeypatch.delenv("KERNRIG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache.default().root == tmp_path / "xdg" / "kernrig"


def test_digest_separates_parts_and_reads_files(tmp_path: Path) -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")
    file = tmp_path / "tree" / "file"
    file.parent.mkdir()
    file.write_text("one")
    same = tmp_path / "same"
    same.write_text("one")
    assert digest(file) == digest(same) != digest("one")
    before = digest(file.parent)
    file.write_text("two")
    assert digest(file) != digest(same)
    assert digest(file.parent) != before
    changed = digest(file.parent)
    file.chmod(0o755)
    assert digest(file.parent) != changed
