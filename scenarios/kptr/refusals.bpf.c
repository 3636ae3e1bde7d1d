// SPDX-License-Identifier: GPL-2.0-only
/* Programs as a compiler writes them that do not load, each for one reason (test_compiled_refusals.py). */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct kr_obj {
	__u32 id;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
} __attribute__((preserve_access_index));

struct kr_obj *kr_obj_new(__u32 id) __ksym;
void kr_obj_release(struct kr_obj *obj) __ksym;
struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
void bpf_task_release(struct task_struct *task) __ksym __weak;

/* The map is one of owning_map.py, with tags. */
struct value {
	__u64 before;
	struct kr_obj *seen;
	__u64 between;
	struct kr_obj *owned;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct value);
} values SEC(".maps");

#define PROGRAM(name)                                                   \
	static __always_inline void name##_with(struct value *value);   \
	SEC("?tc")                                                      \
	int name(void *ctx)                                             \
	{                                                               \
		__u32 key = 0;                                          \
		struct value *value = bpf_map_lookup_elem(&values, &key); \
		if (value)                                              \
			name##_with(value);                             \
		return 0;                                               \
	}                                                               \
	static __always_inline void name##_with(struct value *value)

PROGRAM(whole)
{
	struct kr_obj *obj = kr_obj_new(1);

	if (!obj)
		return;
	obj = bpf_kptr_xchg(&value->owned, obj);
	if (obj)
		kr_obj_release(obj);
}

PROGRAM(loses_what_came_out)
{
	struct kr_obj *obj = kr_obj_new(1);

	if (obj)
		bpf_kptr_xchg(&value->owned, obj);
}

PROGRAM(forgets_the_test)
{
	struct kr_obj *obj = bpf_kptr_xchg(&value->owned, NULL);

	kr_obj_release(obj);
}

PROGRAM(releases_what_it_only_sees)
{
	struct kr_obj *obj = value->owned;

	if (obj)
		kr_obj_release(obj);
}

PROGRAM(releases_twice)
{
	struct kr_obj *obj = bpf_kptr_xchg(&value->owned, NULL);

	if (!obj)
		return;
	kr_obj_release(obj);
	kr_obj_release(obj);
}

PROGRAM(assigns)
{
	struct kr_obj *obj = kr_obj_new(1);

	if (!obj)
		return;
	*(struct kr_obj *volatile *)&value->owned = obj;
	kr_obj_release(obj);
}

PROGRAM(clears)
{
	*(struct kr_obj *volatile *)&value->owned = NULL;
}

PROGRAM(exchanges_what_only_sees)
{
	struct kr_obj *obj = bpf_kptr_xchg(&value->seen, NULL);

	if (obj)
		kr_obj_release(obj);
}

PROGRAM(writes_through)
{
	struct kr_obj *obj = value->seen;

	if (obj)
		obj->id = 1;
}

PROGRAM(copies_the_value)
{
	__u32 key = 1;

	bpf_map_update_elem(&values, &key, value, 0);
}

__noinline int set(__u64 *number)
{
	return number ? *number = 42 : 0;
}

/* The pointer is handed to a global function, which takes it for the address of a number. */
PROGRAM(hands_the_field_to_a_function)
{
	set((__u64 *)&value->owned);
}

PROGRAM(hands_data_to_a_function)
{
	set(&value->before);
}

PROGRAM(puts_in_another_type)
{
	struct task_struct *task = bpf_task_from_pid(1);
	struct kr_obj *obj;

	if (!task)
		return;
	obj = bpf_kptr_xchg(&value->owned, (void *)task);
	if (obj)
		kr_obj_release(obj);
}

char LICENSE[] SEC("license") = "GPL";
