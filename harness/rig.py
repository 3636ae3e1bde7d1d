# SPDX-License-Identifier: MIT
"""From settings to machines: kernels, images, templates and leases, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness import kernels
from harness.bpfbuild import compile_objects
from harness.cache import Cache
from harness.errors import KernrigError
from harness.host import Qemu, find_qemu
from harness.settings import Settings
from harness.tree import Tree, guest_package, scenario_files
from harness.vm import accel, slots, template
from harness.vm.blueprint import Accel, Blueprint
from harness.vm.machine import Machine
from harness.vm.shape import Shape

if TYPE_CHECKING:
    from harness.image import Image
    from harness.kernels import Kernel
    from harness.vm.template import Template

Say = Callable[[str], None]
MODULES_MISSING_VARIABLE = "KERNRIG_MODULES_MISSING"


@dataclass
class Lease:
    """A machine in use. `spoiled` by whoever finds that it must not serve another scenario."""

    machine: Machine
    spoiled: bool = False


class Rig:
    """All that the settings lead to, for one process. Close it to end what it still holds."""

    def __init__(
        self,
        settings: Settings,
        rootdir: Path,
        *,
        cache: Cache | None = None,
        say: Say,
        guest_options: tuple[str, ...] = (),
    ) -> None:
        """`guest_options`: words for the command line of pytest in the guest."""
        self.settings = settings
        self.rootdir = rootdir
        self.cache = cache or Cache.default()
        self.say = say
        self._guest_options = guest_options
        self._kernels: dict[str, Kernel] = {}
        self._blueprints: dict[tuple[str, Shape], Blueprint] = {}
        self._accels: dict[str, Accel] = {}
        self._trees: dict[str, Tree] = {}
        self._templates: dict[tuple[str, Shape], Template] = {}
        self._files: dict[str, Path | bytes] | None = None
        self._qemu: Qemu | None = None
        self._slots = slots.Slots(self.cache.root / "state" / "slots")
        self._shared: dict[tuple[str, Shape], tuple[Lease, list[int]]] = {}

    def qemu(self) -> Qemu:
        """The QEMU to use. Raises HostError for a missing or unusable one."""
        if self._qemu is None:
            self._qemu = find_qemu(self.settings.qemu)
        return self._qemu

    def kernel(self, name: str) -> Kernel:
        """The kernel that the user called `name`."""
        if name not in self._kernels:
            modules = self.settings.modules if kernels.is_path(name) else None
            self._kernels[name] = kernels.resolve(name, modules=modules, cache=self.cache, say=self.say)
        return self._kernels[name]

    def accel(self, name: str) -> Accel:
        """The accelerator for a kernel."""
        return self.blueprint(name, self.settings.shape).accel

    def blueprint(self, name: str, shape: Shape) -> Blueprint:
        """What a machine for that kernel in that shape, as the kernel needs it, is made of."""
        key = (name, shape)
        if key not in self._blueprints:
            self._slots.check(shape.memory)
            kernel = self.kernel(name)
            fitted = shape.on(kernel.config)
            self._slots.check(fitted.memory)
            plan = Blueprint(self.qemu(), Accel("tcg", ""), kernel, self._image(kernel), fitted)
            if name not in self._accels:
                self._accels[name] = accel.choose(self.settings.accel, plan, cache=self.cache, say=self.say)
            self._blueprints[key] = replace(plan, accel=self._accels[name])
        return self._blueprints[key]

    def _image(self, kernel: Kernel) -> Image:
        from harness.image import build_image

        return build_image(kernel, cache=self.cache, say=self.say)

    def tree(self, name: str) -> Tree:
        """What is loaded into a guest that runs that kernel."""
        if name not in self._trees:
            if self._files is None:
                files: dict[str, Path | bytes] = guest_package() | scenario_files(
                    self.rootdir, self.settings.scenarios
                )
                self._files = files | compile_objects(files, cache=self.cache, say=self.say)
            modules, environment = self._modules(name)
            self._trees[name] = Tree(
                files=self._files | modules,
                paths=(self.settings.scenarios,) if self._has_scenarios() else (),
                options=("--import-mode=importlib", "--color=no", *self._guest_options),
                environment=environment,
            )
        return self._trees[name]

    def _has_scenarios(self) -> bool:
        return (self.rootdir / self.settings.scenarios).is_dir()

    def _modules(self, name: str) -> tuple[dict[str, Path | bytes], dict[str, str]]:
        """Our own test modules for the kernel; where they can't be built, the guest is told why, for its skips."""
        from harness.modbuild import build_modules

        try:
            built = build_modules(self.kernel(name), cache=self.cache, say=self.say)
        except KernrigError as error:
            reason = error.what.strip().splitlines()[0]
            self.say(f"no test modules for {name}: {reason}")
            return {}, {MODULES_MISSING_VARIABLE: reason}
        return {f"modules/{stem}.ko": path for stem, path in built.files.items()}, {}

    def template(self, name: str, shape: Shape) -> Template:
        """The loaded template, made when it is not in the cache."""
        key = (name, shape)
        if key not in self._templates:
            blueprint = self.blueprint(name, shape)
            booted = template.boot_template(blueprint, cache=self.cache, say=self.say)
            self._templates[key] = template.load_template(
                booted, self.tree(name), cache=self.cache, say=self.say
            )
        return self._templates[key]

    def prepare(self) -> None:
        """Everything the default shape needs, for each kernel: afterwards a clone is milliseconds away."""
        for name in self.settings.kernels:
            if self.settings.isolation == "boot":
                self.blueprint(name, self.settings.shape)
                self.tree(name)
            else:
                self.template(name, self.settings.shape)

    def new_machine(self, name: str, shape: Shape) -> Machine:
        """A machine of its own, by the chosen isolation; the caller closes it and minds the memory (`lease` does)."""
        if self.settings.isolation == "boot":
            return Machine.boot(self.blueprint(name, shape), self.tree(name), cache=self.cache)[0]
        return Machine.clone(self.template(name, shape))

    @contextmanager
    def lease(self, name: str, shape: Shape, *, own: bool = False) -> Iterator[Lease]:
        """A machine for one scenario. Ended afterwards, unless machines are shared, it is not spoiled and `own` is
        false."""
        if self.settings.isolation == "shared" and not own:
            yield from self._lease_shared(name, shape)
            return
        if self.settings.isolation != "boot":
            self.template(name, shape)  # made before memory is reserved for the clone
        memory = self.blueprint(name, shape).shape.memory
        with (
            self._slots.held(memory, waiting=lambda: self.say("waiting for memory")),
            self.new_machine(name, shape) as machine,
        ):
            yield Lease(machine)

    def _lease_shared(self, name: str, shape: Shape) -> Iterator[Lease]:
        key = (name, shape)
        if key not in self._shared:
            self.template(name, shape)
            memory = self.blueprint(name, shape).shape.memory
            locks = self._slots.acquire(memory, waiting=lambda: self.say("waiting for memory"))
            try:
                self._shared[key] = Lease(self.new_machine(name, shape)), locks
            except BaseException:
                slots.release(locks)
                raise
        lease, _ = self._shared[key]
        try:
            yield lease
        except BaseException:
            lease.spoiled = True
            raise
        finally:
            if lease.spoiled:
                self._end_shared(key)

    def _end_shared(self, key: tuple[str, Shape]) -> None:
        lease, locks = self._shared.pop(key)
        lease.machine.close()
        slots.release(locks)

    def close(self) -> None:
        """End the machines that are still shared."""
        for key in list(self._shared):
            self._end_shared(key)
