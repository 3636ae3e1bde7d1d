# SPDX-License-Identifier: MIT
"""Fragments (`kconfig/*.config`) become a kernel's configuration, of which every line is verified.

The tree's own `scripts/kconfig/merge_config.sh` merges; all that no fragment names is off. An option whose
dependencies are not met vanishes without a word there, so the result is compared with what was asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import KernrigError
from harness.kernels.config import KernelConfig

FRAGMENTS = Path(__file__).resolve().parents[3] / "kconfig"
FLAVOURS: dict[str, tuple[str, ...]] = {
    "debug": ("debug",),
    "coverage": ("coverage",),
    "race": ("race",),
}
"""The fragments that a flavour adds to ALWAYS, in the order in which they are merged."""
ALWAYS = ("base", "bpf", "net")

_LINE = re.compile(
    r"(?P<name>CONFIG_\w+)=(?P<value>\"[^\"]*\"|[^\s#]+)\s*(?:#\s*(?P<required>required:?\s*)?"
    r"(?:unless (?P<rival>CONFIG_\w+):\s*)?(?P<reason>.*))?"
)
_WHY = Path(__file__).parent / "why.c"
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Wish:
    """One line of a fragment: `value` as in a `.config` (`n` for off), `required` if a kernel that does not
    know the option is of no use. Where the kernel sets the option `rival`, this one need not be granted.
    """

    option: str
    value: str
    reason: str
    required: bool
    fragment: str
    rival: str | None = None


@dataclass(frozen=True)
class Verified:
    """A configuration that has all that was asked for. `unknown` are the wishes whose option this kernel does
    not have."""

    config: KernelConfig
    unknown: tuple[Wish, ...]


def fragments_of(flavours: Sequence[str]) -> list[Path]:
    """The fragments of a kernel with these flavours, in the order in which they are merged.

    Raises KernrigError for a flavour that does not exist.
    """
    found = list(ALWAYS)
    for flavour in flavours:
        if flavour not in FLAVOURS:
            raise KernrigError(
                f"there is no flavour {flavour!r}",
                hint=f"flavours are {', '.join(sorted(FLAVOURS))}; without one it is {' + '.join(ALWAYS)}",
            )
        found += [each for each in FLAVOURS[flavour] if each not in found]
    return [FRAGMENTS / f"{each}.config" for each in found]


def read_fragment(path: Path) -> list[Wish]:
    """The wishes in a fragment. Raises KernrigError for a line of another form, naming it."""
    wishes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise KernrigError(
                f"{path}, line {number}: {line.strip()!r} is no CONFIG_NAME=VALUE",
                hint="write CONFIG_NAME=n to switch an option off",
            )
        required = found["required"] is not None
        wishes.append(
            Wish(found["name"], found["value"], found["reason"] or "", required, path.stem, found["rival"])
        )
    return wishes


def configure(
    tree: Path, build: Path, fragments: Sequence[Path], make: Sequence[str], environment: Mapping[str, str]
) -> Verified:
    """Write `build`/.config for the sources in `tree`, from the fragments, and verify it.

    `make` is the command with the variables that hold for the whole build. Raises KernrigError when merging fails, an
    option did not stick, or the kernel does not know one that is required; the message names each, its fragment
    and what it depends on that is not there.
    """
    wishes: dict[str, Wish] = {}
    plain = []
    folder = build / "fragments"
    folder.mkdir(exist_ok=True)
    for path in fragments:
        read = read_fragment(path)
        wishes |= {each.option: each for each in read}
        stripped = folder / path.name
        stripped.write_text("".join(f"{each.option}={each.value}\n" for each in read))
        plain.append(str(stripped))
    # The script calls plain make; its variables reach it by MAKEFLAGS.
    flags = " ".join(each for each in make[1:] if "=" in each)
    _run(
        ["scripts/kconfig/merge_config.sh", "-n", "-O", str(build), *plain],
        cwd=tree,
        environment={**environment, "MAKEFLAGS": f"-- {flags}" if flags else ""},
        what="merging the configuration's fragments",
    )
    config = KernelConfig.read(build / ".config")
    odd = [each for each in wishes.values() if not _granted(each, config)]
    answers = _explain(tree, build, odd, make, environment) if odd else {}
    unknown = tuple(each for each in odd if answers[each.option].startswith("unknown"))
    lost = [each for each in odd if each not in unknown or (each.required and each.value != "n")]
    if lost:
        lines = [
            f"  {each.option}={each.value} ({each.fragment}.config: {each.reason}): "
            f"{_told(each, config, answers[each.option])}"
            for each in lost
        ]
        raise KernrigError(
            f"{len(lost)} of {len(wishes)} options did not stick in the configuration of {tree}:\n"
            + "\n".join(lines),
            hint=f"set what they depend on, or change the fragments in {FRAGMENTS}",
        )
    return Verified(config, unknown)


def take(
    tree: Path, build: Path, config: Path, make: Sequence[str], environment: Mapping[str, str]
) -> Verified:
    """Use a whole configuration as it is; what this kernel has besides gets its default. Raises KernrigError when the
    tree's kconfig cannot read it."""
    shutil.copyfile(config, build / ".config")
    _run(
        [*make, "-C", str(tree), f"O={build}", "olddefconfig"],
        cwd=tree,
        environment=environment,
        what=f"taking the configuration {config}",
    )
    return Verified(KernelConfig.read(build / ".config"), ())


def _granted(wish: Wish, config: KernelConfig) -> bool:
    if wish.rival is not None and wish.rival in config:
        return True
    if wish.value == "n":
        return wish.option not in config
    wanted = KernelConfig.parse(f"{wish.option}={wish.value}\n")[wish.option]
    return config.get(wish.option) == wanted


def _told(wish: Wish, config: KernelConfig, answer: str) -> str:
    if answer.startswith("unknown"):
        return "this kernel does not know it, and it is required"
    got = config.get(wish.option, "n")
    return f"it is {got}; {answer}"


def _explain(
    tree: Path, build: Path, wishes: Sequence[Wish], make: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """For each option "unknown", or why it is not what was asked for, by the tree's own kconfig.

    A small program (why.c) is linked with the objects of the tree's `scripts/kconfig`, which its build has
    left. A tree whose make has no target run-command (before 5.17) gives only what its Kconfig files say.
    """
    program = build / "kernrig-why"
    objects = sorted((build / "scripts/kconfig").glob("*.o"))
    without_main = [str(each) for each in objects if each.name not in ("conf.o", "mconf.o", "nconf.o")]
    includes = [f"-I{tree}/scripts/kconfig", f"-I{build}/scripts/kconfig", f"-I{tree}/scripts/include"]
    names = [each.option.removeprefix("CONFIG_") for each in wishes]
    try:
        _run(
            ["gcc", "-O1", "-w", *includes, "-o", str(program), str(_WHY), *without_main],
            cwd=build,
            environment=environment,
            what="building the program that explains options",
        )
        asked = build / "kernrig-why.names"
        asked.write_text("\n".join(names))
        _run(
            [
                *make,
                "-s",
                "-C",
                str(tree),
                f"O={build}",
                f"KBUILD_RUN_COMMAND={program} {asked} >{program}.out",
                "run-command",
            ],
            cwd=build,
            environment=environment,
            what="explaining options",
        )
        answers = dict(
            line.split("\t", 1) for line in Path(f"{program}.out").read_text().splitlines() if "\t" in line
        )
        return {each.option: answers[each.option.removeprefix("CONFIG_")] for each in wishes}
    except (KernrigError, OSError, KeyError):
        known = _declared(tree, names)
        return {f"CONFIG_{name}": known.get(name, "unknown") for name in names}


def _declared(tree: Path, names: Sequence[str]) -> dict[str, str]:
    """The `depends on` lines of options, read from the Kconfig files as text."""
    wanted = set(names)
    found: dict[str, str] = {}
    for folder, _, files in os.walk(tree):
        for file in files:
            if not file.startswith("Kconfig"):
                continue
            name = None
            for line in Path(folder, file).read_text(errors="replace").splitlines():
                head = re.match(r"\s*(?:menu)?config\s+(\w+)\s*$", line)
                if head:
                    name = head[1] if head[1] in wanted else None
                    if name:
                        found.setdefault(name, "its dependencies are not met")
                elif name and (depends := re.match(r"\s+depends on (.*)", line)):
                    found[name] = f"{found[name]}; it depends on {depends[1]}"
    return found


def _run(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], what: str) -> str:
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise KernrigError(f"{what} failed in {cwd}:\n{tail}")
    return done.stdout
