/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The packet as the programs see it: parsed once, then passed along.
 *
 * Both families share one form, an IPv4 address sitting in the first four bytes of a zeroed
 * sixteen. Functions take the family as a constant, so each program compiles for one family only.
 */
#ifndef CILIUM_PACKET_H
#define CILIUM_PACKET_H

#include "common.h"

/* The largest first: initialising a union with {} zeroes its first member and leaves the rest. */
union address {
	__u32 words[4];
	__u64 halves[2];
	__u8 bytes[16];
	__u32 v4; /* be */
};

struct tuple {
	union address saddr;
	union address daddr;
	__u16 sport; /* be; ICMP echo: see struct ct_key4 */
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};

enum packet_flag {
	PACKET_L3 = 1, /* addresses were parsed */
	PACKET_L4 = 2, /* ports or ICMP type were parsed */
	PACKET_FRAGMENT = 4,
	PACKET_LATER_FRAGMENT = 8, /* has no layer 4 header */
	PACKET_ICMP_ERROR = 16,    /* quotes the packet it is about */
	PACKET_PATH_MTU = 32,      /* fragmentation needed, packet too big */
	PACKET_TUNNEL = 64,        /* came through the tunnel or goes into it */
	PACKET_CONTROL = 128,      /* neighbour discovery and group membership */
	PACKET_TO_LISTENER = 256,  /* cuts the connection: the proxy's listener answers with RST */
	PACKET_STRAY = 512,    /* an answer past the proxy whose connection it claims to be of */
	PACKET_PROXIED = 1024, /* goes to a proxy */
	PACKET_CHANGED = 2048, /* policy wants another proxy, or one or none where it was not so */
	PACKET_TRANSLATED = 4096, /* its source was another, see `original` */
};

/* Who hands a packet over. */
enum origin {
	ORIGIN_WIRE = 0,          /* a pod's device, the tunnel or the network */
	ORIGIN_STACK = 1,         /* the node's own stack */
	ORIGIN_PROXY_INGRESS = 2, /* a socket of a proxy for what pods receive */
	ORIGIN_PROXY_EGRESS = 3,  /* or for what they send */
	ORIGIN_DRY_RUN = 4,       /* nobody, see enum dry_run */
};

/* What a connection says about this packet: how to name it and whether to report it. */
struct sighting {
	__u8 reason; /* enum trace_reason */
	__u8 report;
	__u8 left;     /* where the packet leaves the data plane: enum trace_point plus one, or 0 */
	__u8 dropped;  /* why it does not */
	__u32 packets; /* since the last report, this one included */
	__u32 bytes;
};

/* What policy says about it, and why. */
struct judgement {
	__u32 cookie;     /* of the entry that decided */
	__u8 match;       /* enum policy_match */
	__u8 audited;     /* denied, and let pass */
	__u16 proxy_port; /* be; 0 is no redirect */
};

/* What a dry run tells of one policy. */
struct answer {
	__u32 cookie;
	__u8 outcome; /* enum outcome */
	__u8 match;
	__u16 pad;
};

/* One end of a connection, as policy sees it. */
struct side {
	__u32 identity;
	__u32 policy_rev;
	__u16 id;
	__u16 flags; /* enum endpoint_flag */
	__u8 local;  /* an endpoint of this node; else only the identity is known */
	__u8 pad[3];
};

union ct_key {
	struct ct_key6 v6; /* the larger first, see union address */
	struct ct_key4 v4;
};

/* How a packet of a pod goes on. */
enum way {
	WAY_WORLD = 0,
	WAY_POD = 1,    /* of this node */
	WAY_TUNNEL = 2, /* to another node */
	WAY_STACK = 3,  /* to this node itself */
};

/* A frontend as it was when it was looked up; see struct lb_service. */
struct lb_found {
	__u32 first;
	__u16 count;
	__u16 rev_nat;
	__u32 flags; /* enum lb_flag */
	__u32 affinity_timeout;
};

struct packet {
	struct tuple tuple;
	__u16 l4_offset; /* from the Ethernet header */
	__u16 flags;     /* enum packet_flag */
	__u8 tcp_flags;
	__u8 icmp_type; /* of SCTP the type of its first chunk */
	__u8 icmp_code;
	__u8 direction;   /* enum direction the packet is in, for counters */
	__u16 endpoint;   /* local endpoint that events belong to, 0 is none */
	__u16 proxy_port; /* be; of PACKET_PROXIED, 0 for an answer to the proxy */
	__u32 src_identity;
	__u32 dst_identity;
	__u32 peer;    /* be; node at the other end of the tunnel */
	__u32 node;    /* be; where the way leads to */
	__u8 way;      /* enum way */
	__u8 origin;   /* enum origin */
	__u8 zone;     /* enum ct_zone of the key */
	__u8 restored; /* had the node's address in place of a pod's */
	__s32 verdict; /* see forget() */
	struct sighting seen;
	struct judgement judged;       /* by the last policy that was asked */
	struct answer egress, ingress; /* of each policy; for a dry run */
	__u32 lb_backend;              /* who was chosen to serve, 0 is none */
	__u16 lb_rev_nat;              /* frontend that was asked, 0 is none */
	__u16 answers;    /* frontend with whose address the packet goes on, 0 is none */
	__u8 asked_other; /* a frontend that only the nodes it was asked at know: CT_DSR */
	__u8 sender_high; /* the packet comes from the end in the high half of the key */
	union ct_key key; /* of the connection; set by the look-up */
	struct lb_found found;
	struct tuple asked;     /* client and frontend, of a packet to a service from outside */
	union address original; /* of PACKET_TRANSLATED: source before that */

	/* where policy is asked, see note_sides(): not zeroed for packets that ask none */
	struct side initiator, responder;
	__u32 ct_flags;      /* enum ct_flag of the connection */
	__u16 ct_proxy_port; /* be */
	__u16 port;          /* be; port field of the policy key */
	__u8 tracked;        /* there is a connection */
	__u8 pad3[3];
};

enum tcp_flag {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_PSH = 8,
	TCP_ACK = 16,
};

/* The packet at hand, all zero up to its connection key; never NULL where maps exist. */
static __always_inline struct packet *packet_begin(const __u8 direction)
{
	struct scratch *room = scratch();
	struct packet *p;

	_Static_assert(sizeof(struct packet) <= sizeof(room->packet), "room for a packet");
	if (!room)
		return NULL;
	p = (struct packet *)room->packet;
	__builtin_memset(p, 0, offsetof(struct packet, key));
	p->direction = direction;
	return p;
}

/* The packet as the program that made the tail call has left it. */
static __always_inline struct packet *packet_at_hand(void)
{
	struct scratch *room = scratch();

	return room ? (struct packet *)room->packet : NULL;
}

/*
 * A verdict by way of memory the verifier does not follow: behind it, all the paths that led here
 * look the same and are walked once.
 */
static __always_inline int forget(struct packet *p, int verdict)
{
	p->verdict = verdict;
	barrier();
	return p->verdict;
}

static __always_inline bool same_address(const union address *a, const void *b, const __u8 family)
{
	const __u32 *words = b;

	if (family == FAMILY_IPV4)
		return a->v4 == words[0];
	return !((a->words[0] ^ words[0]) | (a->words[1] ^ words[1]) | (a->words[2] ^ words[2]) |
		 (a->words[3] ^ words[3]));
}

/* Multicast, broadcast, unspecified and loopback: never a peer of a pod's unicast traffic. */
static __always_inline bool is_unicast(const union address *a, const __u8 family)
{
	__u32 first;

	if (family == FAMILY_IPV4) {
		first = bpf_ntohl(a->v4) >> 24;
		return first != 0 && first != 127 && first < 224;
	}
	if (a->bytes[0] == 0xff)
		return false;
	/* unspecified, loopback and the embedded IPv4 forms; link-local */
	if (!(a->words[0] | a->words[1]))
		return false;
	return (a->words[0] & bpf_htonl(0xffc00000)) != bpf_htonl(0xfe800000);
}

static __always_inline bool is_link_local6(const union address *a)
{
	return (a->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

#endif
