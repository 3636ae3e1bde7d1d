// SPDX-License-Identifier: GPL-2.0-only
/* Tables as libbpf makes them of variables. What a scenario does not want it leaves out before it loads the object. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct kr_ops_arg;

/* As the module has it, but for members that this object knows nothing of. */
struct kr_ops {
	int (*compute)(int a, int b);
	int (*inspect)(struct kr_ops_arg *arg);
	__u32 slot;
	__s32 scale;
};

/* A later version, with a member that the module does not have. */
struct kr_ops___later {
	int (*compute)(int a, int b);
	int (*more)(void);
	__u32 slot;
	__u32 more_data;
};

struct kr_ops___other_shape {
	int (*compute)(int a, int b);
	__u64 slot;
};

struct kr_nowhere {
	int (*run)(void);
};

struct kr_first {
	int (*one)(int value);
};

SEC("struct_ops/compute")
int add(unsigned long long *ctx)
{
	return (int)ctx[0] + (int)ctx[1];
}

SEC("struct_ops/compute")
int add_later(unsigned long long *ctx)
{
	return (int)ctx[0] + (int)ctx[1] + 1;
}

SEC("struct_ops/compute")
int add_other(unsigned long long *ctx)
{
	return 0;
}

SEC("?struct_ops/inspect")
int inspect(unsigned long long *ctx)
{
	return 9;
}

SEC("struct_ops/run")
int run(unsigned long long *ctx)
{
	return 0;
}

SEC("?struct_ops/compute")
int in_no_table(unsigned long long *ctx)
{
	return 0;
}

SEC(".struct_ops.link")
struct kr_ops table = { .compute = (void *)add, .inspect = (void *)inspect, .slot = 1, .scale = -7 };

/* Made only if somebody says so. */
SEC("?.struct_ops.link")
struct kr_ops optional = { .compute = (void *)add, .slot = 2 };

SEC(".struct_ops.link")
struct kr_ops___later later = { .compute = (void *)add_later };

SEC(".struct_ops.link")
struct kr_ops___other_shape other_shape = { .compute = (void *)add_other };

SEC(".struct_ops.link")
struct kr_nowhere nowhere = { .run = (void *)run };

/* The same program in a table of another type. */
SEC(".struct_ops.link")
struct kr_first reused = { .one = (void *)add };

char _license[] SEC("license") = "GPL";
