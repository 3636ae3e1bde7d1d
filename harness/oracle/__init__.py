# SPDX-License-Identifier: MIT
"""Executable reference models: what the kernel must answer to any sequence of calls. Pure Python, no I/O.

`mprog` and `cgroup_list` are the rules of one ordered list of programs, `families` how tcx, netkit and cgroups
differ, `mprog_calls` the requests, `world` carries them out over programs, links and devices. `struct_ops` is
congestion controls made of BPF programs: maps, links and the sockets that use them, `struct_ops_calls` its requests.
`kptr` is maps that own objects, and programs that move these, `kptr_calls` its requests. `calls` has those that all
know.
"""
