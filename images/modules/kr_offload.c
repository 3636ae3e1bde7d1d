// SPDX-License-Identifier: GPL-2.0-only
/*
 * A network device that takes BPF programs as a smart NIC does: it accepts every program that is loaded for it (with its
 * ifindex), translates nothing and runs none. It stands in for hardware that virtual machines lack.
 */
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/etherdevice.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/skbuff.h>

static struct bpf_offload_dev *kr_offload_dev;
static struct net_device *kr_netdev;

static int kr_insn_hook(struct bpf_verifier_env *env, int insn, int previous)
{
	return 0;
}

static int kr_finalize(struct bpf_verifier_env *env)
{
	return 0;
}

static int kr_accept(struct bpf_prog *prog)
{
	return 0;
}

static void kr_destroy(struct bpf_prog *prog)
{
}

static const struct bpf_prog_offload_ops kr_prog_ops = {
	.insn_hook = kr_insn_hook,
	.finalize = kr_finalize,
	.prepare = kr_accept,
	.translate = kr_accept,
	.destroy = kr_destroy,
};

static netdev_tx_t kr_xmit(struct sk_buff *skb, struct net_device *dev)
{
	dev_kfree_skb(skb);
	return NETDEV_TX_OK;
}

/* That it is there is what the kernel asks of a device before it loads programs for it. */
static int kr_bpf(struct net_device *dev, struct netdev_bpf *request)
{
	return -EOPNOTSUPP;
}

static const struct net_device_ops kr_netdev_ops = {
	.ndo_start_xmit = kr_xmit,
	.ndo_bpf = kr_bpf,
};

static int __init kr_offload_init(void)
{
	int err;

	kr_offload_dev = bpf_offload_dev_create(&kr_prog_ops, NULL);
	if (IS_ERR(kr_offload_dev))
		return PTR_ERR(kr_offload_dev);
	kr_netdev = alloc_netdev(0, "kr_offload", NET_NAME_USER, ether_setup);
	if (!kr_netdev) {
		err = -ENOMEM;
		goto destroy;
	}
	kr_netdev->netdev_ops = &kr_netdev_ops;
	eth_hw_addr_random(kr_netdev);
	rtnl_lock();
	err = register_netdevice(kr_netdev);
	if (!err) {
		err = bpf_offload_dev_netdev_register(kr_offload_dev, kr_netdev);
		if (err)
			unregister_netdevice(kr_netdev);
	}
	rtnl_unlock();
	if (!err)
		return 0;
	free_netdev(kr_netdev);
destroy:
	bpf_offload_dev_destroy(kr_offload_dev);
	return err;
}

static void __exit kr_offload_exit(void)
{
	rtnl_lock();
	bpf_offload_dev_netdev_unregister(kr_offload_dev, kr_netdev);
	unregister_netdevice(kr_netdev);
	rtnl_unlock();
	free_netdev(kr_netdev);
	bpf_offload_dev_destroy(kr_offload_dev);
}

module_init(kr_offload_init);
module_exit(kr_offload_exit);
MODULE_DESCRIPTION("kernrig: a network device that takes offloaded BPF programs");
MODULE_LICENSE("GPL");
