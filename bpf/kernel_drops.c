// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Packets that the kernel drops outside our programs, with its reason: tracepoint skb:kfree_skb.
 *
 * Told are packets of this node's pods, wherever in their namespaces they end, and those on the
 * node's own devices: its network device, the tunnel, cilium_host and the pods' host sides. What our
 * programs drop passes here too and is not told again: codes[] has 0 for the reasons of tc and XDP,
 * and for those of packets that had arrived.
 *
 * The kernel's structs are read at offsets that the agent takes from the kernel's own description
 * (BTF); nothing here depends on the headers that it was compiled with. Runs wherever a packet is
 * freed, also amid our other programs, so it keeps nothing in cilium_scratch.
 */
#define SOURCE_FILE FILE_KERNEL

#include "lib/endpoints.h"
#include "lib/kernel_drops.h"
#include "lib/metrics.h"
#include "lib/ring.h"

#define DEVICE_LOOPBACK 1 /* index of lo in every namespace */
#define IPV4_OFFSET     0x1fff

/* A dropped packet, and whose it is. */
struct dropped {
	const void *skb;
	__u32 ifindex; /* of the node; 0 in a pod, and where the packet has left its device */
	__u16 endpoint;
	__u16 code; /* enum kernel_drop */
	__u8 proto;
	__u8 tcp_flags;
	__u16 flags; /* enum event_flag */
	__u16 sport, dport;
	__u32 length;
	union address saddr, daddr;
};

static __always_inline const struct kernel_drops *drops_of(void)
{
	return (const struct kernel_drops *)bpf_pseudo_fd(2, MAP_KERNEL_DROPS);
}

static __always_inline const void *pointer_at(const void *base, __u16 offset)
{
	const void *found = NULL;

	bpf_probe_read_kernel(&found, sizeof(found), base + offset);
	return found;
}

static __always_inline __u32 word_at(const void *base, __u16 offset)
{
	__u32 found = 0;

	bpf_probe_read_kernel(&found, sizeof(found), base + offset);
	return found;
}

static __always_inline __u16 half_at(const void *base, __u16 offset)
{
	__u16 found = 0;

	bpf_probe_read_kernel(&found, sizeof(found), base + offset);
	return found;
}

/* Is the packet one of a pod, or on a device of the node? Fills in which. */
static __always_inline bool is_ours(struct dropped *d, const void *sk)
{
	const struct kernel_drops *at = drops_of();
	const struct config *config = config_of();
	const void *dev = pointer_at(d->skb, at->skb_dev), *net = NULL;
	const struct endpoint_info *pod;
	const struct netns_info *inside;
	__u64 cookie = 0;

	/* in the queues of sockets other things lie in the place of the device, and nothing is read */
	if (dev) {
		net = pointer_at(dev, at->device_net);
		d->ifindex = word_at(dev, at->device_ifindex);
	}
	if (!net) {
		d->ifindex = 0;
		if (!sk)
			sk = pointer_at(d->skb, at->skb_sk);
		if (!sk)
			return false;
		net = pointer_at(sk, at->sock_net);
	}
	bpf_probe_read_kernel(&cookie, sizeof(cookie), net + at->net_cookie);
	if (!cookie || d->ifindex == DEVICE_LOOPBACK)
		return false;
	inside = map_lookup(map_of(NETNS), &cookie);
	if (inside) {
		d->endpoint = inside->endpoint;
		d->ifindex = 0; /* means nothing outside */
		return true;
	}
	if (cookie != config->netns_cookie || !d->ifindex)
		return false;
	pod = endpoint_of_device(d->ifindex);
	if (pod)
		d->endpoint = pod->id;
	return pod || d->ifindex == config->device_ifindex ||
	       d->ifindex == config->tunnel_ifindex || d->ifindex == config->host_ifindex;
}

static __always_inline void read_transport(struct dropped *d, const void *header)
{
	__u8 bytes[14] = {};

	switch (d->proto) {
	case IPPROTO_TCP:
		if (bpf_probe_read_kernel(bytes, sizeof(bytes), header))
			return;
		d->tcp_flags = bytes[13];
		break;
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		if (bpf_probe_read_kernel(bytes, 4, header))
			return;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bpf_probe_read_kernel(bytes, 2, header))
			return;
		d->sport = bpf_htons(bytes[0]);
		d->dport = bpf_htons(bytes[1]);
		d->flags |= EVENT_L4;
		return;
	default:
		return;
	}
	__builtin_memcpy(&d->sport, bytes, 2);
	__builtin_memcpy(&d->dport, bytes + 2, 2);
	d->flags |= EVENT_L4;
}

/*
 * The headers, as far as they are there. Packets to groups and to everybody are none: whoever is not
 * of the group drops them, and nobody has lost anything.
 */
static __always_inline bool read_headers(struct dropped *d)
{
	const struct kernel_drops *at = drops_of();
	const void *header =
		pointer_at(d->skb, at->skb_head) + half_at(d->skb, at->skb_network_header);
	struct ipv6hdr six;
	struct iphdr four;

	switch (half_at(d->skb, at->skb_protocol)) {
	case be16(ETH_P_IP):
		if (bpf_probe_read_kernel(&four, sizeof(four), header) || four.version != 4)
			return false;
		d->proto = four.protocol;
		d->saddr.v4 = four.saddr;
		d->daddr.v4 = four.daddr;
		if (!is_unicast(&d->saddr, FAMILY_IPV4) || !is_unicast(&d->daddr, FAMILY_IPV4))
			return false;
		if (four.frag_off & bpf_htons(IPV4_OFFSET))
			d->flags |= EVENT_FRAGMENT;
		else
			read_transport(d, header + four.ihl * 4);
		break;
	case be16(ETH_P_IPV6):
		if (bpf_probe_read_kernel(&six, sizeof(six), header) || six.version != 6)
			return false;
		d->flags |= EVENT_IPV6;
		d->proto = six.nexthdr;
		__builtin_memcpy(&d->saddr, &six.saddr, 16);
		__builtin_memcpy(&d->daddr, &six.daddr, 16);
		if (!is_unicast(&d->saddr, FAMILY_IPV6) || !is_unicast(&d->daddr, FAMILY_IPV6))
			return false;
		read_transport(d, header + sizeof(six));
		break;
	default:
		return false;
	}
	d->flags |= EVENT_L3;
	d->length = word_at(d->skb, at->skb_len);
	return true;
}

static __always_inline __u8 direction_of(const struct dropped *d)
{
	const __u8 family = d->flags & EVENT_IPV6 ? FAMILY_IPV6 : FAMILY_IPV4;
	const struct endpoint_info *sender = endpoint_of_address(&d->saddr, family);

	return sender && sender->id == d->endpoint ? DIR_EGRESS : DIR_INGRESS;
}

static __always_inline void tell(const struct dropped *d, __u8 direction)
{
	const struct kernel_drops *limits = drops_of();
	__u64 now = bpf_ktime_get_ns(), earliest;
	struct kernel_drop_pace *pace;
	__u32 zero = 0, sequence;
	struct event *e;

	pace = map_lookup(map_of(KERNEL_DROP_PACE), &zero);
	if (!pace)
		return;
	earliest = now > limits->burst_ns ? now - limits->burst_ns : 0;
	if (pace->spent_ns < earliest)
		pace->spent_ns = earliest;
	if (pace->spent_ns + limits->interval_ns > now) {
		pace->left_out++;
		return;
	}
	e = event_begin(EVENT_DROP, DROP_KERNEL, &sequence);
	if (!e)
		return;
	pace->spent_ns += limits->interval_ns;
	e->cookie = (__u32)pace->left_out;
	pace->left_out = 0;
	e->file = FILE_KERNEL;
	e->line = d->code;
	e->endpoint = d->endpoint;
	e->flags = d->flags | (direction == DIR_INGRESS ? EVENT_INGRESS : EVENT_EGRESS);
	e->ifindex = d->ifindex;
	e->proto = d->proto;
	e->tcp_flags = d->tcp_flags;
	e->sport = d->sport;
	e->dport = d->dport;
	__builtin_memcpy(e->saddr, &d->saddr, 16);
	__builtin_memcpy(e->daddr, &d->daddr, 16);
	e->packets = 1;
	e->bytes = d->length;
	event_commit(e, sequence);
}

static __always_inline int on_drop(const void *skb, __u64 reason, const void *sk)
{
	struct dropped d = {.skb = skb, .code = KERNEL_DROP_OTHER};
	__u8 direction;

	if (reason < KERNEL_REASONS)
		d.code = drops_of()->codes[reason];
	/* the packet of a dry run is freed as if it were dropped */
	if (!d.code || word_at(skb, drops_of()->skb_mark) == MARK_DRY_RUN)
		return 0;
	if (!is_ours(&d, sk) || !read_headers(&d))
		return 0;
	direction = direction_of(&d);
	count(DROP_KERNEL, direction, FILE_KERNEL, d.code, d.length);
	if (config_of()->flags & CONFIG_DROPS)
		tell(&d, direction);
	return 0;
}

int cil_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	return on_drop((const void *)ctx->args[0], (__u32)ctx->args[2], NULL);
}

/* Linux 6.11 and later tell of the socket too, for packets that have left their device. */
int cil_kfree_skb_at_socket(struct bpf_raw_tracepoint_args *ctx)
{
	return on_drop((const void *)ctx->args[0], (__u32)ctx->args[2], (const void *)ctx->args[3]);
}
