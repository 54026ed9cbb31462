// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The first look at packets of the network, while a deny list, a rate limit or the acceleration of
 * services is in use: sources in a denied prefix, and sources that send faster than they may, end
 * here before they cost anything, and what asks services of other nodes' backends turns round.
 */
#define SOURCE_FILE FILE_XDP

#include "lib/nodeport_xdp.h"
#include "lib/ring.h"

#define TOKEN_SHIFT 20
#define EARN_SHIFT  10
#define NS_PER_S    1000000000ULL
/* A minute, and 134 million packets a second: bounds that keep their product within 64 bits. */
#define EARN_MAX (1ULL << 26)
#define RATE_MAX (1ULL << 27)

static __always_inline void count_frame(__u8 reason, const __u8 direction, __u16 line, __u32 bytes)
{
	struct metrics_key key = {
		.reason = reason,
		.direction = direction,
		.line = line,
		.file = FILE_XDP,
	};
	struct metrics_value *value = map_lookup(map_of(METRICS), &key);
	struct metrics_value first = {.packets = 1, .bytes = bytes};

	if (value) {
		value->packets++;
		value->bytes += bytes;
	} else {
		map_update(map_of(METRICS), &key, &first, BPF_NOEXIST);
	}
}

/* The deny list, counted by prefix; no event, so that a flood cannot fill the ring. */
static __always_inline bool denied(struct cidr_info *info)
{
	if (!info)
		return false;
	__sync_fetch_and_add(&info->packets, 1);
	return true;
}

/*
 * Token bucket of one source. Processors may race for a token, which lets a packet too many by at
 * worst; the limit is a guard, not an account. Returns how many packets were refused in a row.
 */
static __always_inline __u32 refused(const struct rate_key *key)
{
	const struct config *config = config_of();
	__u64 rate = config->rate_limit_pps, burst, now, earned, tokens;
	struct rate_bucket *bucket;

	if (!rate)
		return 0;
	burst = config->rate_limit_burst ? config->rate_limit_burst : rate;
	now = bpf_ktime_get_ns();
	bucket = map_lookup(map_of(RATELIMIT), key);
	if (!bucket) {
		struct rate_bucket fresh = {
			.last_ns = now,
			.tokens = (burst - 1) << TOKEN_SHIFT,
		};

		map_update(map_of(RATELIMIT), key, &fresh, BPF_ANY);
		return 0;
	}
	/* whole microseconds (of 1024 ns) earn; what is left over goes on counting */
	earned = (now - bucket->last_ns) >> EARN_SHIFT;
	bucket->last_ns += earned << EARN_SHIFT;
	if (earned > EARN_MAX)
		earned = EARN_MAX;
	if (rate > RATE_MAX)
		rate = RATE_MAX;
	tokens = bucket->tokens +
		 ((earned * rate) << (TOKEN_SHIFT - EARN_SHIFT)) / (NS_PER_S >> TOKEN_SHIFT);
	if (tokens > burst << TOKEN_SHIFT)
		tokens = burst << TOKEN_SHIFT;
	if (tokens < 1 << TOKEN_SHIFT) {
		bucket->tokens = tokens;
		return ++bucket->refused;
	}
	bucket->tokens = tokens - (1 << TOKEN_SHIFT);
	bucket->refused = 0;
	return 0;
}

/* The first refusal after a pass is told, the rest are counted. */
static __always_inline void report_refusal(struct xdp_md *ctx, const struct rate_key *key,
					   __u32 bytes, __u16 line)
{
	struct event *e;
	__u32 sequence;

	if (!(config_of()->flags & CONFIG_DROPS))
		return;
	e = event_begin(EVENT_DROP, DROP_RATE_LIMITED, &sequence);
	if (!e)
		return;
	e->flags = EVENT_L3 | EVENT_INGRESS;
	if (key->family == FAMILY_IPV6)
		e->flags |= EVENT_IPV6;
	e->file = FILE_XDP;
	e->line = line;
	e->packets = 1;
	e->bytes = bytes;
	e->ifindex = ctx->ingress_ifindex;
	e->src_identity = ID_WORLD;
	__builtin_memcpy(e->saddr, key->ip, 16);
	event_commit(e, sequence);
}

static __always_inline int accelerated(struct xdp_md *ctx, __u16 protocol, __u32 bytes)
{
	int verdict;

	if (!(config_of()->flags & CONFIG_LB_XDP))
		return XDP_PASS;
	verdict = xdp_services(ctx, protocol);
	if (verdict == XDP_TX)
		count_frame(REASON_METRIC_FORWARDED, DIR_EGRESS, __LINE__, bytes);
	return verdict;
}

int cil_xdp_entry(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 bytes = ctx->data_end - ctx->data, streak;
	struct ethhdr *eth = data;
	struct rate_key source = {};

	if (data + sizeof(*eth) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + sizeof(*eth);
		struct cidr_key4 key = {.prefixlen = 32};

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		key.addr = ip->saddr;
		source.family = FAMILY_IPV4;
		*(__u32 *)source.ip = ip->saddr;
		if (denied(map_lookup(map_of(CIDR4), &key))) {
			count_frame(DROP_POLICY_DENY, DIR_INGRESS, __LINE__, bytes);
			return XDP_DROP;
		}
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + sizeof(*eth);
		struct cidr_key6 key = {.prefixlen = 128};

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		__builtin_memcpy(key.addr, &ip->saddr, 16);
		source.family = FAMILY_IPV6;
		__builtin_memcpy(source.ip, &ip->saddr, 16);
		if (denied(map_lookup(map_of(CIDR6), &key))) {
			count_frame(DROP_POLICY_DENY, DIR_INGRESS, __LINE__, bytes);
			return XDP_DROP;
		}
	} else {
		return XDP_PASS;
	}
	streak = refused(&source);
	if (!streak)
		return accelerated(ctx, eth->h_proto, bytes);
	if (streak == 1)
		report_refusal(ctx, &source, bytes, __LINE__);
	count_frame(DROP_RATE_LIMITED, DIR_INGRESS, __LINE__, bytes);
	return XDP_DROP;
}
