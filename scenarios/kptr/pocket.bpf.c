// SPDX-License-Identifier: GPL-2.0-only
/* A map whose values own one object of kr_kptr each, and programs that move objects in and out. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct kr_obj {
	__u32 id;
} __attribute__((preserve_access_index));

struct kr_obj *kr_obj_new(__u32 id) __ksym;
struct kr_obj *kr_obj_find(__u32 id) __ksym;
void kr_obj_release(struct kr_obj *obj) __ksym;

/*
 * Scenarios put in a map whose BTF says which pointer owns its object (owning_map.py): the tag for it differs
 * among kernels, and clang 14 loses it when the type was used without it before.
 */
struct value {
	__u64 before;
	struct kr_obj *seen;
	__u64 between;
	struct kr_obj *obj;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct value);
} pocket SEC(".maps");

__u32 key;
__u32 id;

/* Objects that went out on another CPU than they came in on, by the top bits of their id. */
__u64 crossed;

static __always_inline int let_go(struct kr_obj *obj)
{
	int found;

	if (!obj)
		return 0;
	found = obj->id;
	kr_obj_release(obj);
	return found;
}

static __always_inline int swap(struct kr_obj *in)
{
	struct value *value = bpf_map_lookup_elem(&pocket, &key);

	if (!value) {
		let_go(in);
		return -1;
	}
	return let_go(bpf_kptr_xchg(&value->obj, in));
}

/* Each returns the id of the object that was in the value before: 0 is none, -1 that there is no value. */
SEC("tc")
int put_new(void *ctx)
{
	struct kr_obj *obj = kr_obj_new(id);

	return obj ? swap(obj) : -1;
}

SEC("tc")
int put_static(void *ctx)
{
	struct kr_obj *obj = kr_obj_find(id);

	return obj ? swap(obj) : -1;
}

SEC("tc")
int take(void *ctx)
{
	return swap(NULL);
}

SEC("tc")
int peek(void *ctx)
{
	struct value *value = bpf_map_lookup_elem(&pocket, &key);
	struct kr_obj *obj;

	if (!value)
		return -1;
	obj = value->obj;
	return obj ? obj->id : 0;
}

SEC("tc")
int overwrite(void *ctx)
{
	struct value value = {};

	return bpf_map_update_elem(&pocket, &key, &value, BPF_EXIST);
}

SEC("tc")
int delete(void *ctx)
{
	return bpf_map_delete_elem(&pocket, &key);
}

/* Ids tell where an object was made. */
SEC("tc")
int put_from_here(void *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct kr_obj *obj = kr_obj_new(cpu + 1);
	int old;

	if (!obj)
		return -1;
	old = swap(obj);
	if (old > 0 && old != cpu + 1)
		__sync_fetch_and_add(&crossed, 1);
	return old;
}

char LICENSE[] SEC("license") = "GPL";
