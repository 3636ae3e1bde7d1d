# SPDX-License-Identifier: MIT
"""Which functions of the kernel carry out the changes of each map type, and where their arguments are.

From the map_*_ops tables of kernel/bpf/*.c and net/core/bpf_sk_storage.c. Helper calls in programs are patched to
direct calls of these functions, or go through the helper and then to them (kernel/bpf/verifier.c:do_misc_fixups); so
each change passes just one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from harness.guest.bpf import uapi


class Operation(StrEnum):
    """What happens to a map."""

    UPDATE = "update"
    DELETE = "delete"
    PUSH = "push"
    POP = "pop"
    TAKE = "look up and delete"
    TAKE_BATCH = "look up and delete a batch"
    EVICT = "evict"


CHANGES = frozenset((Operation.UPDATE, Operation.DELETE, Operation.PUSH, Operation.POP))
"""The operations proper; the others are those that a tracer of updates and deletes is blind for."""


@dataclass(frozen=True)
class Hook:
    """A function behind an operation.

    `map`, `key` and `value` are parameters by their names in BTF, without leading underscores; None: it has none. The
    value is `percpu` when it is one per possible CPU, and the key is an `owner` when it is an object's address. An
    `optional` function is one that not every kernel has.
    """

    operation: Operation
    function: str
    map: str = "map"
    key: str | None = "key"
    value: str | None = None
    percpu: bool = False
    owner: bool = False
    optional: bool = False


def _update(function: str, *, percpu: bool = False) -> Hook:
    return Hook(Operation.UPDATE, function, value="value", percpu=percpu)


def _delete(function: str) -> Hook:
    return Hook(Operation.DELETE, function)


def _take(kind: str) -> tuple[Hook, ...]:
    return (
        Hook(Operation.TAKE, f"{kind}_map_lookup_and_delete_elem", value="value", percpu="percpu" in kind),
        Hook(Operation.TAKE_BATCH, f"{kind}_map_lookup_and_delete_batch", key=None),
    )


def _queue(pop: str) -> tuple[Hook, ...]:
    return (
        Hook(Operation.PUSH, "queue_stack_map_push_elem", key=None, value="value"),
        Hook(Operation.POP, pop, key=None, value="value"),
    )


def _storage(*, system_call: str, helper: str, owner: str) -> tuple[Hook, ...]:
    """All kinds of storage share the function that makes and changes elements, and its key is the owner."""
    return (
        Hook(
            Operation.UPDATE, "bpf_local_storage_update", map="smap", key="owner", value="value", owner=True
        ),
        _delete(f"{system_call}_delete_elem"),
        Hook(Operation.DELETE, f"{helper}_delete", key=owner, owner=True),
        # what tracing programs call
        *(
            Hook(Operation.DELETE, f"{helper}_delete_{form}", key=owner, owner=True, optional=True)
            for form in ("recur", "tracing")
        ),
    )


# The LRU calls it back with the element that it gives to another key.
_EVICT = Hook(Operation.EVICT, "htab_lru_map_delete_node", map="arg", key="node")
_ARRAY_DELETE = _delete("array_map_delete_elem")
_FD_ARRAY = (_update("bpf_fd_array_map_update_elem"), _delete("fd_array_map_delete_elem"))

HOOKS: dict[int, tuple[Hook, ...]] = {
    uapi.BPF_MAP_TYPE_HASH: (
        _update("htab_map_update_elem"),
        _delete("htab_map_delete_elem"),
        *_take("htab"),
    ),
    uapi.BPF_MAP_TYPE_LRU_HASH: (
        _update("htab_lru_map_update_elem"),
        _delete("htab_lru_map_delete_elem"),
        _EVICT,
        *_take("htab_lru"),
    ),
    uapi.BPF_MAP_TYPE_PERCPU_HASH: (
        _update("htab_percpu_map_update_elem"),
        _update("bpf_percpu_hash_update", percpu=True),
        _delete("htab_map_delete_elem"),
        *_take("htab_percpu"),
    ),
    uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH: (
        _update("htab_lru_percpu_map_update_elem"),
        _update("bpf_percpu_hash_update", percpu=True),
        _delete("htab_lru_map_delete_elem"),
        _EVICT,
        *_take("htab_lru_percpu"),
    ),
    uapi.BPF_MAP_TYPE_ARRAY: (_update("array_map_update_elem"), _ARRAY_DELETE),
    uapi.BPF_MAP_TYPE_PERCPU_ARRAY: (
        _update("array_map_update_elem"),
        _update("bpf_percpu_array_update", percpu=True),
        _ARRAY_DELETE,
    ),
    uapi.BPF_MAP_TYPE_LPM_TRIE: (_update("trie_update_elem"), _delete("trie_delete_elem")),
    uapi.BPF_MAP_TYPE_QUEUE: _queue("queue_map_pop_elem"),
    uapi.BPF_MAP_TYPE_STACK: _queue("stack_map_pop_elem"),
    uapi.BPF_MAP_TYPE_HASH_OF_MAPS: (
        _update("bpf_fd_htab_map_update_elem"),
        _delete("htab_map_delete_elem"),
    ),
    uapi.BPF_MAP_TYPE_ARRAY_OF_MAPS: _FD_ARRAY,
    uapi.BPF_MAP_TYPE_PROG_ARRAY: _FD_ARRAY,
    uapi.BPF_MAP_TYPE_TASK_STORAGE: _storage(
        system_call="bpf_pid_task_storage", helper="bpf_task_storage", owner="task"
    ),
    uapi.BPF_MAP_TYPE_SK_STORAGE: _storage(
        system_call="bpf_fd_sk_storage", helper="bpf_sk_storage", owner="sk"
    ),
    uapi.BPF_MAP_TYPE_INODE_STORAGE: _storage(
        system_call="bpf_fd_inode_storage", helper="bpf_inode_storage", owner="inode"
    ),
    uapi.BPF_MAP_TYPE_CGRP_STORAGE: _storage(
        system_call="bpf_cgrp_storage", helper="bpf_cgrp_storage", owner="cgroup"
    ),
}
"""Per map type. Where programs and system calls come through different functions, both are there."""
