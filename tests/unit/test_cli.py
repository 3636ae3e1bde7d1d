# SPDX-License-Identifier: MIT
from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from harness import doctor as host_doctor
from harness import kernels
from harness.cache import Cache
from harness.cli import cli, session
from harness.cli.clean import RESULTS, Item, choose, leftovers
from harness.cli.failure import Failure
from harness.cli.kernel import NOTABLE
from harness.cli.options import MACHINE, one_kernel, read_settings, shared_options
from harness.deadline import Deadline
from harness.doctor import Report, Row, State
from harness.errors import KernrigError
from harness.kernels import AvailableKernel, Kernel, KernelConfig, Provenance
from harness.settings import OPTIONS, Settings
from harness.vm.shape import Shape

DAY = 86400


def invoke(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(cli, words, prog_name="kernrig", input=answer)


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("KERNRIG_CACHE", str(tmp_path / "cache"))


class TestCommandLine:
    def test_help_names_every_command(self) -> None:
        result = invoke("--help")
        assert result.exit_code == 0
        for name in ("doctor", "kernel", "shell", "run", "bisect", "clean", "behaviours"):
            assert f"\n  {name} " in result.output

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nonsense"], "No such command 'nonsense'"),
            (["run"], "Missing argument '[--] CMD...'"),
            (["run", "--cpus", "many", "true"], "'many' is not a valid integer"),
            (["run", "--accel", "warp", "true"], "'warp' is not one of 'auto', 'kvm', 'tcg'"),
            (["run", "--timeout", "0", "true"], "0 is not in the range x>0"),
            (["run", "--nonsense", "--", "true"], "No such option"),
            (["shell", "extra"], "unexpected extra argument"),
            (["kernel", "fetch"], "Missing argument 'NAME...'"),
            (["kernel", "show"], "Missing argument 'NAME'"),
            (["clean", "--kind", "junk"], "there is no kind junk; there are: kernel,"),
            (["clean", "--older-than", "yesterday"], "'yesterday' is not a valid float"),
        ],
    )
    def test_a_wrong_command_line_is_a_usage_error(self, words: list[str], said: str) -> None:
        result = invoke(*words)
        assert said in result.output
        assert result.exit_code == 2

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["run", "--cpus", "0", "true"], "can't have 0 processors"),
            (["run", "--memory", "8", "--", "true"], "at least 256"),
            (["run", "--kernel", "a", "--kernel", "b", "true"], "2 were named: a, b"),
            (["shell", "--kernel", "nonsense"], "there is no kernel 'nonsense'"),
            (["kernel", "fetch", "/etc/passwd"], "/etc/passwd is not a kernel"),
        ],
    )
    def test_a_value_without_sense_is_one_message_that_says_what_to_do(
        self, words: list[str], said: str
    ) -> None:
        result = invoke(*words)
        assert result.exit_code == 1
        assert result.stderr.startswith("kernrig: ")
        assert said in result.stderr
        assert "hint: " in result.stderr
        assert len(result.stderr.splitlines()) < 24

    def test_hints_name_the_options_as_they_are_here(self) -> None:
        result = invoke("run", "--memory", "8", "true")
        assert "--memory" in result.stderr
        assert "--kr-" not in result.stderr

    def test_a_console_needs_a_terminal(self) -> None:
        result = invoke("shell", "--console")
        assert result.exit_code == 1
        assert "--console needs a terminal" in result.stderr

    def test_a_failure_brings_its_own_status(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise Failure("it is gone", status=125)

        monkeypatch.setattr(kernels, "available", fail)
        result = invoke("kernel", "list")
        assert (result.exit_code, result.stderr) == (125, "kernrig: it is gone\n")

    def test_ctrl_c_ends_with_130_and_no_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(kernels, "available", interrupt)
        result = invoke("kernel", "list")
        assert (result.exit_code, result.stderr) == (130, "kernrig: interrupted\n")

    def test_help_imports_nothing_slow(self) -> None:
        code = (
            "import sys, harness.cli;"
            "slow = {'paramiko', 'pytest', 'psutil', 'pexpect', 'cryptography', 'harness.rig', 'filelock'};"
            "sys.exit(', '.join(sorted(slow & sys.modules.keys())) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def parse(*words: str) -> Settings:
    """What a command with all the machine's options gets from these words."""
    found: list[Settings] = []

    @click.command()
    @shared_options(*MACHINE)
    def command(**given: Any) -> None:
        found.append(read_settings(given))

    command.main(list(words), standalone_mode=False)
    return found[0]


class TestSharedOptions:
    def test_nothing_given_is_pytests_default(self) -> None:
        assert parse() == Settings()

    def test_the_command_line_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERNRIG_CPUS", "3")
        monkeypatch.setenv("KERNRIG_MEMORY", "700")
        assert parse("--cpus", "2").shape == Shape(cpus=2, memory=700)

    def test_all_of_them_arrive(self) -> None:
        words = [
            "--kernel",
            "/boot/x",
            "--modules",
            "/m",
            "--isolation",
            "boot",
            "--append",
            "a=1",
            "--append",
            "b",
            "--qemu",
            "q",
            "--accel",
            "tcg",
        ]
        assert parse(*words) == Settings(
            kernels=("/boot/x",),
            modules=Path("/m"),
            isolation="boot",
            shape=Shape(append=("a=1", "b")),
            qemu="q",
            accel="tcg",
        )

    def test_a_wrong_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KERNRIG_CPUS", "two")
        with pytest.raises(KernrigError, match="environment variable KERNRIG_CPUS: 'two'"):
            parse()

    def test_a_machine_runs_one_kernel(self) -> None:
        assert one_kernel(parse("--kernel", "x")) == "x"
        with pytest.raises(KernrigError, match="2 were named: x, y"):
            one_kernel(parse("--kernel", "x", "--kernel", "y"))


class TestDoctor:
    @pytest.mark.parametrize(
        ("state", "status"), [(State.OK, 0), (State.WARN, 0), (State.MISSING, 1)], ids=lambda each: str(each)
    )
    def test_the_status_says_whether_something_is_missing(
        self, state: State, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report = Report((Row("qemu", state, "it is what it is", "use --kr-qemu"),))
        monkeypatch.setattr(host_doctor, "check", lambda **_: report)
        result = invoke("doctor")
        assert result.exit_code == status
        assert "it is what it is\n" in result.stdout
        assert "-> use --qemu\n" in result.stdout

    def test_the_qemu_to_look_at_can_be_named(self, tmp_path: Path) -> None:
        result = invoke("doctor", "--qemu", str(tmp_path / "none"))
        assert result.exit_code == 1
        assert f"{tmp_path / 'none'} is not an executable file" in result.stdout
        assert "missing: " in result.stdout


@pytest.fixture
def some_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel that every name stands for in the test."""
    btf = tmp_path / "vmlinux.btf"
    btf.write_bytes(bytes(3 << 20))
    kernel = Kernel(
        name="debian:6.12",
        release="6.12.1-test",
        vmlinuz=tmp_path / "vmlinuz",
        modules=None,
        btf=btf,
        digest="d",
        provenance=Provenance("debian", "linux-image-test", "6.12.1-1", "ab" * 32, ("trixie",), ("cd part",)),
        config=KernelConfig({"CONFIG_HZ": "250", "CONFIG_NETKIT": "y"}),
    )
    monkeypatch.setattr(kernels, "resolve", lambda *_, **__: kernel)
    return kernel


class Answers:
    """A machine whose kernel lacks netkit, cannot tell about kptrs, and has one struct_ops type."""

    def job(self, request: dict[str, Any], *, deadline: Deadline) -> Iterator[dict[str, Any]]:
        if request["args"] == ["kptr"]:
            yield {"type": "error", "exception": "BpfError", "text": "EPERM\nand a log"}
        elif request["target"].endswith(":types"):
            yield {"type": "result", "value": ["tcp_congestion_ops"]}
        else:
            yield {"type": "result", "value": request["args"] != ["netkit"]}


class TestKernel:
    @pytest.fixture(autouse=True)
    def some_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [
            AvailableKernel("debian:6.1-1", "6.1-amd64", "6.1-1", ("bookworm",), None, True),
            AvailableKernel("debian:6.19-1", "6.19-amd64", "6.19-1", ("sid",), "no modules", False),
            AvailableKernel("debian:7.2-1", "7.2-amd64", "7.2-1", ("sid", "trixie"), None, False),
        ]
        monkeypatch.setattr(kernels, "available", lambda *_: found)

    def test_list_marks_what_is_fetched_and_leaves_out_what_is_incomplete(self) -> None:
        assert invoke("kernel", "list").stdout.splitlines() == [
            "* debian:6.1-1  6.1-amd64  bookworm",
            "  debian:7.2-1  7.2-amd64  sid, trixie",
        ]

    def test_list_all_says_what_is_incomplete(self) -> None:
        lines = invoke("kernel", "list", "--all").stdout.splitlines()
        assert lines[1] == "  debian:6.19-1  6.19-amd64  sid  (incomplete: no modules)"

    def test_list_as_json(self) -> None:
        found = json.loads(invoke("kernel", "list", "--json").stdout)
        assert [each["name"] for each in found] == ["debian:6.1-1", "debian:7.2-1"]

    def test_show(self, some_kernel: Kernel) -> None:
        output = invoke("kernel", "show", "--no-features", "debian:6.12").stdout
        assert "release     6.12.1-test\n" in output
        assert "debian: linux-image-test 6.12.1-1 (trixie)\n" in output
        assert f"sha256    {'ab' * 32}\n" in output
        assert "modules     none\n" in output
        assert "vmlinux.btf (3.0 MiB)\n" in output
        assert "HZ=250" in output
        assert "NETKIT=y" in output
        assert "KASAN=n" in output

    def test_show_as_json_has_all_of_the_configuration(self, some_kernel: Kernel) -> None:
        facts = json.loads(invoke("kernel", "show", "--no-features", "--json", "debian:6.12").stdout)
        assert facts["config"] == dict(some_kernel.config)
        assert facts["btf_bytes"] == 3 << 20
        assert facts["provenance"]["parts"] == ["cd part"]

    def test_show_probes_features_and_names_the_types_that_the_kernel_itself_has(
        self, some_kernel: Kernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "lend_machine", lambda _: nullcontext(Answers()))
        facts = json.loads(invoke("kernel", "show", "--json", "debian:6.12").stdout)
        assert (facts["features"]["tcx"], facts["features"]["netkit"]) == (True, False)
        assert facts["features"]["kptr"] == "BpfError: EPERM"
        assert {name for name in facts["features"] if ":" in name} == {"struct_ops:tcp_congestion_ops"}
        output = invoke("kernel", "show", "debian:6.12").stdout
        assert re.search(r"\nfeatures    .*struct_ops:tcp_congestion_ops\nlacks", output, re.DOTALL)
        assert "unknown     kptr: BpfError: EPERM" in output

    def test_show_says_what_it_knows_before_it_fails_to_boot(self, some_kernel: Kernel) -> None:
        result = invoke("kernel", "show", "--qemu", "/nonexistent", "debian:6.12")
        assert "release     6.12.1-test\n" in result.stdout
        assert "no QEMU: /nonexistent" in result.stderr
        assert result.exit_code == 1

    def test_notable_options_are_spelt_as_in_kconfig(self) -> None:
        assert all(option.startswith("CONFIG_") for option in NOTABLE)
        assert len(set(NOTABLE)) == len(NOTABLE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache with two images, a kernel and state, and a directory of results below the current one."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cache = Cache.default()

    def make(folder: Path) -> None:
        (folder / "file").write_bytes(bytes(2 << 20))

    for kind, key in (("image", "old"), ("image", "new"), ("kernel", "k")):
        cache.build(kind, key, make)
    with cache.state("apt") as folder:
        (folder / "lists").write_text("lists")
    long_ago = time.time() - 40 * DAY
    os.utime(cache.root / "image" / "old", (long_ago, long_ago))
    slots = cache.root / "state" / "slots"
    slots.mkdir()
    (slots / "0").touch()
    run = Path(".kernrig/results/20260101-000000-1/test_x")
    run.mkdir(parents=True)
    (run / "console.log").write_text("text")
    os.utime(run.parent, (long_ago, long_ago))
    return cache


def kept(cache: Cache) -> set[str]:
    return {f"{entry.kind}/{entry.key}" for entry in cache.entries()} - {"state/slots"}


ALL = {"image/old", "image/new", "kernel/k", "state/apt"}
RUN = Path(".kernrig/results/20260101-000000-1")


class TestClean:
    def test_sizes_are_shown_by_kind(self, cache: Cache) -> None:
        output = invoke("clean", answer="n\n").stdout
        assert f"in {cache.root}:\n" in output
        lines = [line.split() for line in output.splitlines()]
        assert ["image", "2", "4", "MiB", "remove", "all"] in [line[:6] for line in lines]
        assert ["kernel", "1", "2", "MiB"] in [line[:4] for line in lines]

    def test_no_means_no(self, cache: Cache) -> None:
        result = invoke("clean", "--all", answer="n\n")
        assert result.exit_code == 1
        assert "nothing was removed" in result.stderr
        assert kept(cache) == ALL
        assert RUN.exists()

    def test_without_an_answer_nothing_is_removed(self, cache: Cache) -> None:
        result = invoke("clean", answer="")
        assert result.exit_code == 1
        assert "--yes" in result.stderr
        assert kept(cache) == ALL

    def test_yes_removes_the_caches_but_no_evidence(self, cache: Cache) -> None:
        result = invoke("clean", answer="y\n")
        assert result.exit_code == 0
        assert "removed 4 entries, 6 MiB" in result.stdout
        assert kept(cache) == set()
        assert RUN.exists()

    def test_all_takes_the_evidence_too(self, cache: Cache) -> None:
        assert invoke("clean", "--all", "--yes").exit_code == 0
        assert kept(cache) == set()
        assert not RUN.exists()

    def test_one_kind(self, cache: Cache) -> None:
        assert invoke("clean", "--kind", "image", "--yes").exit_code == 0
        assert kept(cache) == {"kernel/k", "state/apt"}

    def test_what_was_not_used_for_long(self, cache: Cache) -> None:
        assert invoke("clean", "--older-than", "30", "--yes").exit_code == 0
        assert kept(cache) == ALL - {"image/old"}
        assert not RUN.exists()

    def test_kind_and_age_together(self, cache: Cache) -> None:
        assert invoke("clean", "--older-than", "30", "--kind", "kernel", "--yes").exit_code == 0
        assert kept(cache) == ALL
        assert RUN.exists()

    def test_the_memorys_locks_stay(self, cache: Cache) -> None:
        invoke("clean", "--all", "--yes")
        assert (cache.root / "state" / "slots" / "0").exists()

    def test_nothing_to_remove_asks_nothing(self, cache: Cache) -> None:
        invoke("clean", "--all", "--yes")
        result = invoke("clean")
        assert result.exit_code == 0
        assert "nothing to remove" in result.stdout

    def test_running_machines_are_mentioned(self, cache: Cache) -> None:
        with (cache.root / "state" / "slots" / "0").open() as slot:
            assert "machines are running" not in invoke("clean", answer="n\n").stderr
            fcntl.flock(slot, fcntl.LOCK_EX)
            assert "machines are running" in invoke("clean", answer="n\n").stderr

    def test_what_a_killed_maker_left_is_swept(self, cache: Cache) -> None:
        left = cache.root / "image" / ".new-gone-abc123"
        left.mkdir()
        invoke("clean", "--yes")
        assert not left.exists()

    def test_temporary_files_of_the_dead_go_those_of_the_living_stay(
        self, tmp_path: Path, cache: Cache
    ) -> None:
        old = time.time() - 2 * 3600
        for name in ("kernrig-dead", "kernrig-living", "kernrig-young", "others"):
            folder = tmp_path / "tmp" / name
            folder.mkdir()
            (folder / "memory").touch()
            if name != "kernrig-young":
                os.utime(folder, (old, old))
        with (tmp_path / "tmp" / "kernrig-living" / "memory").open():
            assert [item.path.name for item in leftovers()] == ["kernrig-dead"]
            assert invoke("clean", "--kind", "leftovers", "--yes").exit_code == 0
        assert {path.name for path in (tmp_path / "tmp").iterdir()} == {
            "kernrig-living",
            "kernrig-young",
            "others",
        }


def test_results_are_chosen_only_when_meant() -> None:
    item = Item(RESULTS, Path("x"), 1, 0.0, lambda: None)
    now = 10.0 * DAY

    def chosen(**options: Any) -> bool:
        defaults: dict[str, Any] = {"kinds": (), "days": None, "everything": False}
        return choose([item], now=now, **defaults | options) == [item]

    assert not chosen()
    assert chosen(everything=True)
    assert chosen(kinds=(RESULTS,))
    assert chosen(days=9)
    assert not chosen(days=11)
    assert not chosen(days=9, kinds=("image",))
