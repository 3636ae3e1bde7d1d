# SPDX-License-Identifier: MIT
"""The files that count their lines: chosen by make, and what is kept of them, with the host's gcc."""

import json
import subprocess
from pathlib import Path

import pytest

from harness.errors import KernrigError
from harness.kernels.source import kconfig, names, plan, profile

# How kbuild asks (scripts/Makefile.lib), and a directory that wants to be left out of it.
MAKEFILE = """\
all:
	$(MAKE) -f sub.mk kernel/bpf/mprog.o kernel/fork.o net/core/dev.o net/core/dev_addr.o
"""
SUB_MAKEFILE = """\
flags = $(if $(patsubst n%,,$(GCOV_PROFILE_$(@F))$(GCOV_PROFILE)),counts,plain)
GCOV_PROFILE := n
%.o: ; @echo $@ $(flags)
"""


def test_make_chooses_exactly_what_the_lists_name(tmp_path: Path) -> None:
    chosen = tmp_path / "list"
    chosen.write_text("# why\n\nkernel/bpf/   # all of it\nnet/core/dev.c # one\n")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "sub.mk").write_text(SUB_MAKEFILE)
    words = profile.make_words([chosen])
    said = subprocess.run(
        ["make", "-s", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert said.splitlines() == [
        "kernel/bpf/mprog.o counts",
        "kernel/fork.o plain",
        "net/core/dev.o counts",
        "net/core/dev_addr.o plain",
    ]


def test_our_own_list_is_well_formed_and_says_why() -> None:
    (word,) = profile.make_words([profile.LIST])
    assert "kernel/bpf/%.o" in word
    lines = [line for line in profile.LIST.read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.partition("#")[2].strip() for line in lines)


@pytest.mark.parametrize(
    "line", ["kernel/bpf", "/kernel/bpf/", "kernel/bpf/mprog.o", "$(shell id).c", "a b/"]
)
def test_another_line_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"{line}\n")
    with pytest.raises(KernrigError, match="neither a directory nor a source file"):
        profile.make_words([tmp_path / "list"])


def test_only_a_kernel_with_counters_is_built_with_the_list(tmp_path: Path) -> None:
    assert profile.lists_for(kconfig.fragments_of(["debug"])) == ()
    assert profile.lists_for(kconfig.fragments_of(["coverage"])) == (profile.LIST,)
    whole = tmp_path / "config"
    whole.write_text("CONFIG_64BIT=y\nCONFIG_GCOV_KERNEL=y\n")
    assert profile.lists_for([whole]) == (profile.LIST,)
    assert profile.make_words([]) == []


def test_a_kernel_of_clang_cannot_be_asked(tmp_path: Path) -> None:
    from harness.cache import Cache

    assert names.parse("deb-source:6.12+clang+coverage").flavours == ("clang", "coverage")
    with pytest.raises(KernrigError, match="gcc"):
        plan("deb-source:6.12+clang+coverage", cache=Cache(tmp_path))


def test_notes_and_sources_of_what_counts_are_kept(tmp_path: Path) -> None:
    tree, build, folder = tmp_path / "tree", tmp_path / "build", tmp_path / "kept"
    (tree / "kernel").mkdir(parents=True)
    (tree / "include").mkdir()
    (build / "kernel").mkdir(parents=True)
    (tree / "include/one.h").write_text("static inline int one(int x)\n{\n\treturn x ? 1 : 2;\n}\n")
    (tree / "kernel/a.c").write_text('#include "one.h"\nint a(int x)\n{\n\treturn one(x) + 1;\n}\n')
    (tree / "kernel/b.c").write_text("int b(void)\n{\n\treturn 1;\n}\n")
    command = ["gcc", "--coverage", f"-I{tree}/include", "-c"]
    for name in ("a", "b"):
        words = [*command, f"{tree}/kernel/{name}.c", "-o", f"kernel/{name}.o"]
        subprocess.run(words, cwd=build, check=True, timeout=60)
        (build / f"kernel/.{name}.o.cmd").write_text(" ".join(words).replace("--coverage", "-ftest-coverage"))
    # Left by an earlier build that counted it.
    (build / "kernel/.b.o.cmd").write_text("gcc -c b.c")
    profile.keep(tree, build, folder)
    about = json.loads((folder / "profiled.json").read_text())
    assert about["objects"] == {"kernel/a.o": ["include/one.h", "kernel/a.c"]}
    assert about["build"] == str(build)
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert kept == {
        "profiled.json",
        "notes/kernel/a.gcno",
        "source/include/one.h",
        "source/kernel/a.c",
    }


def test_a_build_that_counts_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernrigError, match="left 0 notes"):
        profile.keep(tmp_path, tmp_path, tmp_path / "kept")
