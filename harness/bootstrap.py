# SPDX-License-Identifier: MIT
"""Set-up of a fresh checkout: host packages, a QEMU that is new enough, the virtual environment.

Run as `python3 harness/bootstrap.py` (that is what `make` does) before anything is installed, so it needs
nothing but the standard library.
Doing it again costs a few file checks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - here is where an older one is turned away
    sys.exit(
        f"kernrig needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.11 ..."
    )

ROOT = Path(__file__).resolve().parent.parent
# Run as a script, sys.path starts with this folder, whose modules must not pass for top-level ones.
if Path(sys.path[0]).resolve() == ROOT / "harness":
    sys.path[0] = str(ROOT)

from harness import host  # noqa: E402
from harness.errors import HostError, KernrigError  # noqa: E402

# What the environment depends on; the set-up code itself belongs to it.
INPUTS = ("pyproject.toml", "constraints.txt", "harness/bootstrap.py", "harness/host.py")
# In .venv while pip works on it.
UNFINISHED = "kernrig-unfinished"
ENVIRONMENT_INPUTS = ("root", "python", "inputs")
# Waits for another apt to finish.
APT_GET = "apt-get -q -o DPkg::Lock::Timeout=300"
APT_DEADLINE_S = 1800
PIP_DEADLINE_S = 1800
# How long an interrupted program may take to clean up.
INTERRUPTED_S = 20


def say(line: str) -> None:
    """One line about what happens now."""
    print(f"setup: {line}", flush=True)


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a program's output, indented."""
    return "\n".join("    " + line for line in text.strip().splitlines()[-lines:])


def run(argv: list[str], *, deadline_s: float, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output (both streams) of a quiet program; 124 when it passes its deadline."""
    try:
        program = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
        )
    except OSError as error:
        return 127, str(error)
    with program:
        try:
            said, _ = program.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            program.kill()
            said, _ = program.communicate()
            return 124, f"{said}\nno end after {deadline_s:.0f} s"
        except KeyboardInterrupt:
            # The terminal told it as well; apt and pip put things in order before they end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(timeout=INTERRUPTED_S)
            program.kill()
            raise
    return program.returncode, said


def root_prefix() -> list[str] | None:
    """What to put before a command so that root runs it; None when that cannot be had."""
    if os.geteuid() == 0:
        return []
    sudo = host.which("sudo")
    if sudo is None:
        return None
    if run([str(sudo), "-n", "true"], deadline_s=30)[0] == 0:
        return [str(sudo), "-n"]
    if sys.stdin.isatty():
        say("sudo will ask for your password")
        return [str(sudo)]
    return None


def as_root(script: str) -> None:
    """Have root run a shell script; HostError with the script to type when that is impossible or it fails."""
    # A subshell, so that pasting it into a shell leaves no trap and no -e behind.
    by_hand = f"as root, run what follows, then try again:\n\n(set -eu\n{script})\n"
    prefix = root_prefix()
    if prefix is None:
        raise HostError(
            "installing host packages needs root, and sudo is missing or asks for a password", hint=by_hand
        )
    status, said = run([*prefix, "sh", "-euc", script], deadline_s=APT_DEADLINE_S)
    if status != 0:
        raise HostError(f"installing host packages failed with status {status}\n{tail(said)}", hint=by_hand)


def install_script(packages: list[str]) -> str:
    """The shell script that installs packages from the host's own apt sources."""
    # One broken repository among the host's makes update fail, and is no reason to give up.
    return (
        f"{APT_GET} update || echo 'going on with the old index'\n"
        f"{APT_GET} install -y --no-install-recommends {shlex.join(packages)}\n"
    )


def backports_script(codename: str, sources: list[host.AptSource], mirror: str) -> str:
    """The shell script that installs QEMU from backports and leaves the host's apt configuration as it is.

    apt gets a private source list and a private place for indexes; dpkg's database is the host's.
    """
    own = [
        (source.uri, source.release)
        for source in sources
        if source.origin == "Debian" and re.fullmatch(rf"{codename}(-updates|-security)?", source.release)
    ]
    wanted = dict.fromkeys([(mirror, codename), *own, (mirror, f"{codename}-backports")])
    lines = [f"deb [signed-by={host.KEYRING}] {uri} {release} main" for uri, release in wanted]
    install = f"-t {codename}-backports install -y --no-install-recommends {host.QEMU_PACKAGE}"
    return "\n".join(
        [
            "d=$(mktemp -d)",
            "trap 'rm -rf \"$d\"' EXIT",
            "trap 'exit 130' INT TERM HUP",
            # apt downloads as the user _apt, who must be able to enter.
            'chmod 755 "$d"',
            'mkdir -p "$d/parts" "$d/lists/partial"',
            f"printf '%s\\n' {shlex.join(lines)} >\"$d/list\"",
            'set -- -o Dir::Etc::SourceList="$d/list" -o Dir::Etc::SourceParts="$d/parts" \\',
            '  -o Dir::State::Lists="$d/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=',
            f'{APT_GET} "$@" update',
            f'{APT_GET} "$@" {install}\n',
        ]
    )


def apt_candidate(package: str) -> tuple[int, ...]:
    """The upstream version apt would install, as numbers; empty when it knows none (apt-cache(8), policy)."""
    said = run(["apt-cache", "policy", package], deadline_s=60, env={"LC_ALL": "C"})[1]
    found = re.search(r"^\s*Candidate:\s*(?:\d+:)?(\d+(?:\.\d+)*)", said, re.MULTILINE)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def wanted_packages() -> list[str]:
    """The Debian packages that bring what is missing, QEMU aside."""
    packages = [need.package for need in host.missing_needs()]
    # Debian splits ensurepip from its Python; an interpreter of another origin must bring its own.
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        packages.append("python3-venv")
    return list(dict.fromkeys(packages))


def present_qemu() -> host.Qemu | None:
    """The QEMU that kernrig would use, None when set-up should install one.

    HostError when KERNRIG_QEMU names one that cannot serve: nothing that is installed would help.
    """
    setting = os.environ.get("KERNRIG_QEMU")
    try:
        return host.find_qemu(setting)
    except HostError:
        if setting:
            raise
        return None


def check_distribution(packages: list[str]) -> host.Distribution:
    """The host's distribution; HostError with what to install when set-up knows no way to do it there."""
    here = host.distribution()
    if not here.is_debian or host.which("apt-get") is None:
        raise HostError(
            f"this host lacks what Debian calls: {' '.join(packages)}",
            hint=f"set-up installs packages on Debian 12 and 13; on {here or 'this system'} "
            "install their counterparts by hand (QEMU 10 or newer), then try again",
        )
    return here


def install_plan(packages: list[str], *, qemu: bool) -> str:
    """The shell script, for root, that installs `packages` and, if asked for, a QEMU that is new enough.

    Says what it is going to install. HostError when it cannot be known where to get it from.
    """
    here = check_distribution(packages + [host.QEMU_PACKAGE] * qemu)
    candidate = apt_candidate(host.QEMU_PACKAGE) if qemu else ()
    backports = qemu and here.codename == "bookworm" and candidate < host.QEMU_MINIMUM[:1]
    ordinary = packages + [host.QEMU_PACKAGE] * (qemu and not backports)
    steps = []
    if ordinary:
        say(f"installing {' '.join(ordinary)}")
        steps.append(install_script(ordinary))
    if backports:
        sources = host.apt_sources()
        mirror = host.debian_mirror(sources, here.codename)
        if mirror is None:
            raise HostError(
                f"no mirror of Debian {here.codename} in apt's configuration to get QEMU from",
                hint="name one: KERNRIG_MIRROR=<address> make setup",
            )
        release = f"{here.codename}-backports"
        say(f"installing {host.QEMU_PACKAGE} from {release} (the release's own is too old)")
        steps.append(backports_script(here.codename, sources, mirror))
    return "export DEBIAN_FRONTEND=noninteractive\n" + "".join(steps)


def provide_packages() -> None:
    """Install the missing host packages and QEMU; HostError with what to type when it cannot be done."""
    packages = wanted_packages()
    qemu_missing = present_qemu() is None
    if not packages and not qemu_missing:
        return
    as_root(install_plan(packages, qemu=qemu_missing))
    importlib.invalidate_caches()
    still = wanted_packages()
    if still == ["python3-venv"]:
        raise HostError(
            f"{sys.executable} has no venv or no ensurepip, and Debian's python3-venv did not help",
            hint="name another interpreter: make PYTHON=/usr/bin/python3 ...",
        )
    if still:
        raise HostError(
            f"{' '.join(still)}: installed, yet what kernrig needs of it is missing",
            hint=f"apt-get install --reinstall {' '.join(still)}",
        )
    if qemu_missing:
        say(f"QEMU {host.find_qemu()}")


def fingerprint(root: Path) -> dict[str, str]:
    """What the set-up rests on, by content: when it equals the stamp, nothing is to be done."""
    python = root / ".venv/bin/python"
    prints = {
        "root": str(root),
        "python": str(python.resolve()) if python.exists() else "missing",
        "inputs": hashlib.sha256(b"\0".join((root / name).read_bytes() for name in INPUTS)).hexdigest(),
    }
    qemu = host.which(os.environ.get("KERNRIG_QEMU") or host.QEMU_COMMAND)
    if qemu is None:
        prints["qemu"] = "missing"
    else:
        state = qemu.stat()
        prints["qemu"] = f"{qemu} {state.st_size} {state.st_mtime_ns}"
    return prints


def stamp_path(root: Path) -> Path:
    """Where the fingerprint of the last complete set-up is kept: it vanishes along with the environment."""
    return root / ".venv" / "kernrig-setup.json"


def read_stamp(root: Path) -> dict[str, str]:
    """The fingerprint of the last complete set-up, empty when there is none."""
    try:
        stamp = json.loads(stamp_path(root).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(root: Path) -> None:
    """Record that the set-up is complete. By rename: a stamp is there as a whole or not at all."""
    fresh = stamp_path(root).with_suffix(".new")
    fresh.write_text(json.dumps(fingerprint(root), indent=1) + "\n")
    fresh.replace(stamp_path(root))


def environment_is_current(root: Path) -> bool:
    """Whether .venv was completed from the present inputs, and its commands are still there."""
    stamp, now = read_stamp(root), fingerprint(root)
    commands = (root / ".venv/bin" / name for name in ("pytest", "ruff", "mypy", "kernrig"))
    return all(stamp.get(key) == now[key] for key in ENVIRONMENT_INPUTS) and all(c.exists() for c in commands)


def is_current(root: Path) -> bool:
    """Whether the last set-up is complete and nothing it rests on has changed."""
    same_qemu = read_stamp(root).get("qemu") == fingerprint(root)["qemu"]
    return same_qemu and environment_is_current(root) and not host.missing_needs()


def environment_works(venv: Path) -> bool:
    """Whether there is an environment that pip can be called in, made for this very place."""
    if (venv / UNFINISHED).exists():
        return False
    try:
        shebang = (venv / "bin/pip").read_text(errors="replace").partition("\n")[0]
    except OSError:
        return False
    # Copied or moved from another checkout, its scripts would start that one's interpreter. (Where the path
    # is too long for a first line, pip's scripts start with /bin/sh.)
    if not shebang.startswith((f"#!{venv}/bin/", "#!/bin/sh")):
        return False
    probe = "import sys, pip; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)"
    return run([str(venv / "bin/python"), "-c", probe], deadline_s=60)[0] == 0


def create_environment(venv: Path) -> None:
    """Put an empty environment in place of whatever is there."""
    say("rebuilding .venv, which is incomplete or broken" if venv.exists() else "creating .venv")
    if venv.is_symlink():
        venv.unlink()
    elif venv.exists():
        shutil.rmtree(venv)
    # The running interpreter may be the one in the environment that was just removed.
    python = getattr(sys, "_base_executable", None) or sys.executable
    status, said = run([python, "-m", "venv", str(venv)], deadline_s=300)
    if status != 0:
        raise HostError(
            f"{python} -m venv failed with status {status}\n{tail(said)}",
            hint="name another interpreter: make PYTHON=/usr/bin/python3 ...",
        )


def provide_environment(root: Path) -> None:
    """Create or complete .venv: an editable install at the pinned versions."""
    venv = root / ".venv"
    if not environment_works(venv):
        create_environment(venv)
    say("installing Python packages into .venv")
    argv = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-input", "-c", str(root / "constraints.txt"), "-e", f"{root}[dev]"]
    stamp_path(root).unlink(missing_ok=True)
    # pip undoes what fails, but not what is killed: half a package would pass for installed.
    unfinished = venv / UNFINISHED
    unfinished.touch()
    status, said = run(argv, deadline_s=PIP_DEADLINE_S)
    if status != 124:
        unfinished.unlink()
    if status != 0:
        raise HostError(
            f"pip install failed with status {status}\n{tail(said)}",
            hint=f"is the package index reachable (pip config list)? By hand:\n  {shlex.join(argv)}",
        )


def setup(root: Path = ROOT) -> bool:
    """Do what is to be done; False when everything was there. HostError when the host stands in the way."""
    if is_current(root):
        return False
    with locked(root / ".bootstrap.lock"):
        if is_current(root):
            return False
        started = time.monotonic()
        provide_packages()
        if not environment_is_current(root):
            provide_environment(root)
        write_stamp(root)
        say(f"done in {time.monotonic() - started:.0f} s")
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock against another set-up of the same checkout; a dead process holds none."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Exit status: 0 done, 1 the host lacks something, 130 interrupted."""
    try:
        setup()
    except KernrigError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
