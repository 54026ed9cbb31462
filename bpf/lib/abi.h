/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Every struct, enum and constant that the data plane shares with user space, and nothing else.
 *
 * Python derives its layouts from this very file, so it holds only what a plain C parser reads:
 * fixed-width types, explicit padding, natural alignment, no bitfields, no macros with arguments.
 * Ports and addresses are in network byte order (suffix or comment "be"); everything else is in
 * host byte order.
 */
#ifndef CILIUM_ABI_H
#define CILIUM_ABI_H

/* Directions, as in the metrics map and in policy verdicts. */
enum direction {
	DIR_INGRESS = 1,
	DIR_EGRESS = 2,
	DIR_SERVICE = 3,
};

/* Reserved identities. */
enum reserved_identity {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_UNMANAGED = 3,
	ID_HEALTH = 4,
	ID_INIT = 5,
	ID_REMOTE_NODE = 6,
	ID_KUBE_APISERVER = 7,
	ID_INGRESS = 8,
	ID_WORLD_IPV4 = 9,
	ID_WORLD_IPV6 = 10,
};

enum family {
	FAMILY_IPV4 = 1,
	FAMILY_IPV6 = 2,
};

/* ---- node configuration: one entry, read through a direct value pointer ---- */

enum aggregation {
	AGGREGATE_NONE = 0,
	AGGREGATE_LOW = 1,
	AGGREGATE_MEDIUM = 3,
	AGGREGATE_MAX = 4,
};

enum config_flag {
	CONFIG_HUBBLE = 1, /* write trace events at all */
	CONFIG_MASQUERADE_IPV4 = 2,
	CONFIG_MASQUERADE_IPV6 = 4,
	CONFIG_POLICY_VERDICTS = 8, /* write policy verdict events */
	CONFIG_TUNNEL = 16,         /* remote pods are reached through the tunnel device */
	CONFIG_AUDIT = 32,          /* policy denials are reported and passed */
	CONFIG_DROPS = 64,          /* write drop events */
	CONFIG_PROXY = 128,         /* connections may be redirected to proxies */
	CONFIG_HOST_FIREWALL = 256, /* the node has a policy of its own: see struct endpoint_info */
	CONFIG_LB_PODS = 512,       /* translate what pods send, packet by packet */
	CONFIG_LB_NODES = 1024,     /* translate what comes from outside: NodePort and its kin */
	CONFIG_LB_REJECT = 2048,    /* answer where a service has nobody, rather than stay silent */
	CONFIG_LB_DSR_TCP = 4096,   /* backends of other nodes answer clients themselves */
	CONFIG_LB_DSR_UDP = 8192,
	CONFIG_LB_EXTERNAL_CLUSTERIP = 16384, /* cluster addresses are served from outside too */
	CONFIG_LB_SOCKET_TRACE = 32768,       /* write events of translations at the socket */
	CONFIG_LB_SOCKET_HOST = 65536,        /* at the socket only for processes of the node */
	CONFIG_LB_XDP = 131072,               /* connections with other nodes' backends, in XDP */
	CONFIG_DEBUG = 262144,                /* write debug and capture events of each packet */
};

/* skb->mark: what programs, the node's stack and the proxies' sockets tell each other. */
enum mark {
	MARK_MASK = 0x0f00,
	MARK_DRY_RUN = 0x0100, /* judge and say what comes out: enum dry_run; by prog-test-run */
	/*
	 * For a proxy: routed to the node itself by PROXY_TABLE. The proxy's port (be) is in the
	 * upper 16 bits; 0 is an answer to a connection that a proxy opened.
	 */
	MARK_TO_PROXY = 0x0200,
	MARK_LISTENER = 1,       /* with MARK_TO_PROXY: for the listener, not a connection of its */
	MARK_SNAT_DONE = 0x0300, /* never masquerade */
	MARK_OVERLAY = 0x0400,   /* outer packet of the tunnel */
	/* SO_MARK of every socket of a proxy for what pods receive, and for what they send */
	MARK_PROXY_INGRESS = 0x0a00,
	MARK_PROXY_EGRESS = 0x0b00,
	MARK_HOST = 0x0c00,     /* a process of the node */
	MARK_IDENTITY = 0x0f00, /* the sender's identity is in the other bits */
};

/*
 * What a dry run leaves in skb->cb. It judges the packet as the first of a new connection, whatever
 * connections there are, leaves nothing behind and goes nowhere. The mark does not cross from one
 * namespace to another, so no pod can ask for it.
 */
enum dry_run {
	/*
	 * enum outcome: egress in bits 0 to 7, ingress in bits 8 to 15; from bit 16 on the id of the
	 * backend that was chosen, 0 is none
	 */
	DRY_RUN_OUTCOMES = 0,
	DRY_RUN_EGRESS_COOKIE = 1, /* of the entry that decided */
	DRY_RUN_INGRESS_COOKIE = 2,
	DRY_RUN_REASON = 3, /* drop reason, or else the port of the proxy */
	/* enum policy_match, as the outcomes; from bit 16 on the id of the frontend that was asked */
	DRY_RUN_MATCHES = 4,
};

enum outcome {
	OUTCOME_NOT_ASKED = 0,
	OUTCOME_ALLOWED = 1,
	OUTCOME_DENIED = 2,
	OUTCOME_REDIRECTED = 3,
	OUTCOME_AUDITED = 4,
};

/* How marked packets reach the node itself: `ip rule fwmark MARK_TO_PROXY/MARK_MASK`. */
enum proxy_routing {
	PROXY_TABLE = 2004, /* one route: local default dev lo */
	PROXY_RULE_PRIORITY = 9,
};

struct config {
	__u32 flags;
	__u32 aggregation;          /* enum aggregation */
	__u32 aggregation_flags;    /* TCP flags whose first sight is reported */
	__u32 aggregation_interval; /* seconds between reports of a live connection */
	__u32 tunnel_ifindex;
	__u32 host_ifindex;   /* cilium_host */
	__u32 device_ifindex; /* the node's own device */
	__u32 node_ipv4;      /* be */
	__u8 node_ipv6[16];
	__u32 router_ipv4;     /* be; gateway of the pods */
	__u32 masquerade_ipv4; /* be; source of masqueraded traffic */
	__u8 router_ipv6[16];
	__u8 masquerade_ipv6[16];
	__u16 nat_port_min;
	__u16 nat_port_max;
	__u32 ct_timeout_tcp; /* seconds */
	__u32 ct_timeout_tcp_syn;
	__u32 ct_timeout_tcp_fin;
	__u32 ct_timeout_any;
	__u8 host_mac[6]; /* of cilium_host */
	__u8 net_mac[6];  /* of cilium_net */
	__u32 cluster_id;
	__u32 rate_limit_pps; /* XDP, packets per second and source; 0 is off */
	__u32 rate_limit_burst;
	__u16 tunnel_port; /* be; UDP port of the tunnel's outer packets */
	__u16 node_port_min;
	__u16 node_port_max;
	__u16 pad;
	__u32 maglev_size;  /* entries of a table of cilium_lb_maglev */
	__u32 hairpin_ipv4; /* be; source of a pod's packets to itself through a service */
	__u8 hairpin_ipv6[16];
	__u32 lb_hash_seed;           /* of the hash into Maglev tables; the same on all nodes */
	__u64 netns_cookie;           /* of the node's own namespace, for programs at sockets */
	__u32 ct_timeout_service_tcp; /* seconds; how long a client keeps its backend */
	__u32 ct_timeout_service_any;
	__u32 reserved[2];
};

/* ---- endpoints ---- */

/* Local addresses: cilium_lxc. */
struct endpoint_key {
	__u8 ip[16]; /* IPv4 in the first four bytes, the rest zero */
	__u8 family; /* enum family */
	__u8 pad[3];
};

enum endpoint_flag {
	ENDPOINT_HOST = 1,            /* an address of this node, delivered by the stack */
	ENDPOINT_ENFORCE_INGRESS = 2, /* look ingress traffic up in the policy map */
	ENDPOINT_ENFORCE_EGRESS = 4,
	ENDPOINT_AUDIT = 8,
	ENDPOINT_NOT_READY = 16,   /* policy not installed yet: drop */
	ENDPOINT_NO_REDIRECT = 32, /* local redirect policies with LB_SKIP_OWN do not hold for it */
};

/*
 * A pod, or an address of the node. The node's own policy (host firewall) is that of the row of
 * cilium_devices under the index of cilium_host: its id, flags and policy_rev.
 */
struct endpoint_info {
	__u32 ifindex; /* of the host-side device */
	__u32 identity;
	__u32 policy_rev; /* raised after each change of the policy map */
	__u16 id;         /* endpoint id, 0 for the host */
	__u16 flags;      /* enum endpoint_flag */
	__u8 mac[6];      /* of the pod */
	__u8 node_mac[6]; /* of the host-side device */
	__u32 ipv4;       /* be; the endpoint's addresses, for source validation */
	__u8 ipv6[16];
	__u32 pad;
};

/* Devices: cilium_devices, ifindex to the same endpoint_info. */
struct device_key {
	__u32 ifindex;
};

/* ---- address to identity: cilium_ipcache_v2, LPM ---- */

enum ipcache_flag {
	IPCACHE_HAS_TUNNEL = 1,
	IPCACHE_SKIP_TUNNEL = 2,
};

enum ipcache_prefix {
	IPCACHE_STATIC_BITS = 32, /* bits of the key before the address */
};

struct ipcache_key {
	__u32 prefixlen;
	__u16 cluster_id;
	__u8 pad;
	__u8 family; /* enum family */
	__u8 ip[16];
};

struct ipcache_info {
	__u32 identity;
	__u32 tunnel_ipv4; /* be; node that hosts the prefix */
	__u8 flags;        /* enum ipcache_flag */
	__u8 key;
	__u16 pad;
};

/* ---- policy: cilium_policy, endpoint id to an LPM map of its own ---- */

enum policy_prefix {
	POLICY_STATIC_BITS = 40, /* identity and direction are always exact */
	POLICY_FULL_BITS = 64,
};

struct policy_key {
	__u32 prefixlen;
	__u32 identity; /* 0 is any peer */
	__u8 direction; /* enum direction */
	__u8 proto;     /* 0 with no prefix bits is any */
	__u16 port;     /* be; ICMP: type, as a be16 too */
};

enum policy_flag {
	POLICY_DENY = 1,
	POLICY_AUDIT = 2,    /* with POLICY_DENY: reported as denied, and let pass */
	POLICY_REDIRECT = 4, /* through the proxy at proxy_port; nowhere while that is 0 */
};

struct policy_entry {
	__u32 precedence; /* higher wins; then the longer prefix; then the exact identity */
	__u32 cookie;     /* names the rules behind the entry */
	__u16 proxy_port; /* be; of a redirect, 0 while there is no proxy for it */
	__u8 flags;       /* enum policy_flag */
	__u8 prefixlen;   /* protocol and port bits of the key, 0 to 24 */
};

/*
 * What the node's own policy never stops, so that no policy cuts the node off from what it needs to
 * learn of the next one: cilium_host_exempt, a set.
 */
struct exempt_key {
	__u8 peer[16]; /* IPv4 in the first four bytes, the rest zero; all zero is any peer */
	__u16 port;    /* be; destination port */
	__u8 proto;
	__u8 direction; /* enum direction, as the node sees it */
};

enum policy_match {
	MATCH_NONE = 0,
	MATCH_L3_ONLY = 1,
	MATCH_L3_L4 = 2,
	MATCH_L4_ONLY = 3,
	MATCH_ALL = 4,
	MATCH_L3_PROTO = 5,
	MATCH_PROTO_ONLY = 6,
};

/* ---- connection tracking ---- */

/*
 * A connection has one entry. The key orders the two ends by address, then by port, so that both
 * directions find it with one look-up; CT_INITIATOR_HIGH says which end spoke first. For ICMP
 * echo the identifier is the port of the end that asks and zero that of the end that answers, so
 * that two hosts pinging each other with one identifier stay two connections.
 */
struct ct_key4 {
	__u32 addr_low; /* be, compared as a number in network order */
	__u32 addr_high;
	__u16 port_low; /* be */
	__u16 port_high;
	__u8 proto;
	__u8 kind; /* enum ct_kind */
	__u16 zone;
};

struct ct_key6 {
	__u8 addr_low[16];
	__u8 addr_high[16];
	__u16 port_low; /* be */
	__u16 port_high;
	__u8 proto;
	__u8 kind;
	__u16 zone;
};

/*
 * A proxy for what pods send opens connections with the pod's own address. They are in a zone of
 * their own, so that they never meet the pod's.
 */
enum ct_zone {
	CT_ZONE_PODS = 0,
	CT_ZONE_PROXIES = 1,
};

enum ct_kind {
	CT_FLOW = 0,
	CT_SERVICE = 4, /* client to frontend: which backend it got; see struct lb_service */
};

enum ct_flag {
	CT_INITIATOR_HIGH = 1, /* the end in the high half spoke first */
	CT_TX_CLOSING = 2,     /* FIN or RST from the initiator */
	CT_RX_CLOSING = 4,
	CT_SEEN_NON_SYN = 8,
	CT_OUT = 16,            /* the initiator is an endpoint of this node */
	CT_IN = 32,             /* the responder is an endpoint of this node */
	CT_PROXY_REDIRECT = 64, /* to the proxy at proxy_port, as egress policy says */
	CT_FROM_TUNNEL = 256,
	CT_SEEN_REPLY = 512,
	CT_PROXY_INGRESS = 1024, /* the redirect is one of ingress policy */
	CT_PROXY = 2048,         /* opened by a proxy: judged when it came to the proxy */
	CT_DSR = 4096, /* a frontend of another node was asked: answers get it by NAT_OUT */
};

struct ct_entry {
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 rx_packets;
	__u64 rx_bytes;
	__u32 lifetime; /* absolute, seconds of the monotonic clock */
	__u32 flags;    /* enum ct_flag */
	/*
	 * policy_rev of the initiator the entry was allowed under; of CT_SERVICE, where XDP takes
	 * part: the backend's node (be), 0 where it is reached without the tunnel
	 */
	__u32 out_rev;
	__u32 in_rev;       /* policy_rev of the responder the entry was allowed under */
	__u32 src_identity; /* of the initiator */
	__u32 dst_identity;
	__u32 tx_report; /* second of the last trace event of that direction */
	__u32 rx_report;
	__u8 tx_flags; /* TCP flags seen */
	__u8 rx_flags;
	__u16 rev_nat;
	__u16 proxy_port; /* be; of CT_SERVICE: source port that the backend sees, for XDP */
	__u16 pad;
	__u32 tx_reported_packets; /* low half of tx_packets at the last report */
	__u32 tx_reported_bytes;
	__u32 rx_reported_packets;
	__u32 rx_reported_bytes;
	__u32 cookie;  /* of the entry that allowed it, ingress or egress */
	__u32 backend; /* of CT_SERVICE: who serves the client */
};

/* ---- masquerade: cilium_snat_v4_external, cilium_snat_v6_external ---- */

enum nat_direction {
	NAT_OUT = 0, /* original to translated */
	NAT_IN = 1,  /* translated to original */
};

/*
 * Of what comes from outside to a frontend, NAT_OUT is from the client to the frontend, and NAT_IN
 * from the backend to the address that it sees. Where a backend answers the client itself, NAT_OUT
 * is from the backend to the client, and turns its address into that of the frontend.
 */

struct nat_key4 {
	__u32 saddr; /* be */
	__u32 daddr;
	__u16 sport; /* be; ICMP identifier */
	__u16 dport;
	__u8 proto;
	__u8 direction; /* enum nat_direction */
	__u16 pad;
};

struct nat_key6 {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 direction;
	__u16 pad;
};

struct nat_entry4 {
	__u64 created_ns;
	__u32 addr; /* be; what the source (out) or destination (in) becomes */
	__u16 port;
	__u16 rev_nat; /* of NAT_IN: the frontend that was asked, 0 is none */
};

struct nat_entry6 {
	__u64 created_ns;
	__u8 addr[16];
	__u16 port;
	__u16 rev_nat;
	__u32 pad;
};

/* ---- services ---- */

enum lb_scope {
	LB_EXTERNAL = 0, /* asked from outside, and by everybody where both are alike */
	LB_INTERNAL = 1, /* asked by pods and nodes, where that differs: LB_TWO_SCOPES */
};

/*
 * Frontends: cilium_lb4_services_v2, cilium_lb6_services_v2. Protocol and port zero stand for the
 * address as a whole: whatever is not one of its frontends is refused. On the address zero is every
 * NodePort, for programs at sockets, which do not know all addresses of all nodes.
 */
struct lb_key4 {
	__u32 addr; /* be */
	__u16 port; /* be */
	__u8 proto;
	__u8 scope; /* enum lb_scope */
};

struct lb_key6 {
	__u8 addr[16];
	__u16 port; /* be */
	__u8 proto;
	__u8 scope;
};

enum lb_flag {
	LB_EXTERNAL_IP = 1,
	LB_NODE_PORT = 2,
	LB_EXTERNAL_LOCAL = 4, /* externalTrafficPolicy */
	LB_HOST_PORT = 8,
	LB_AFFINITY = 16,
	LB_LOAD_BALANCER = 32,
	LB_ROUTABLE = 64, /* may be asked from outside */
	LB_SOURCE_RANGE = 128,
	LB_LOCAL_REDIRECT = 256,
	LB_INTERNAL_LOCAL = 512, /* internalTrafficPolicy */
	LB_TWO_SCOPES = 1024,
	LB_SOURCE_RANGE_DENY = 2048,
	LB_DSR = 4096,       /* where the service asks for it itself */
	LB_MAGLEV = 8192,    /* chosen from its table in cilium_lb_maglev */
	LB_WILDCARD = 16384, /* the entry of an address as a whole */
	LB_SKIP_OWN = 32768, /* local redirect: not for the backends' own traffic */
	LB_SNAT = 65536,     /* where the service asks for it itself */
};

/*
 * A frontend. Its backends are `count` ids at `first` of cilium_lb_slots; frontends with the same
 * backends share them. A change writes new slots first and then this entry, in one step; what it
 * replaces is written anew no sooner than nobody can be reading it any more. The first eight bytes
 * are read with one load, so that they always belong together.
 */
struct lb_service {
	__u32 first;
	__u16 count;
	__u16 rev_nat; /* id of the frontend, of cilium_lb_reverse_nat; 0 for an address as a whole */
	__u32 flags;   /* enum lb_flag */
	__u32 affinity_timeout; /* seconds */
};

enum lb_backend_state {
	LB_BACKEND_NONE = 0, /* there is no such backend */
	LB_BACKEND_ACTIVE = 1,
	LB_BACKEND_TERMINATING = 2, /* keeps its connections, gets no new ones while others can */
	LB_BACKEND_QUARANTINED = 3, /* the same, until it is well again */
	LB_BACKEND_MAINTENANCE = 4,
};

/* In the place of a rev_nat: NAT_OUT has the frontend, which is one that only other nodes have. */
enum lb_other {
	LB_OTHER_FRONTEND = 65535,
};

/* Who serves: cilium_lb_backends, by id; 0 is nobody. An id keeps its address while it is in use. */
struct lb_backend {
	__u8 addr[16]; /* IPv4 in the first four bytes, the rest zero */
	__u16 port;    /* be */
	__u8 proto;
	__u8 state; /* enum lb_backend_state */
	__u8 family;
	__u8 flags; /* enum lb_backend_flag */
	__u16 pad;
};

enum lb_backend_flag {
	LB_BACKEND_LOCAL = 1, /* a pod or a process of this node */
};

/* The frontend behind a rev_nat id: cilium_lb_reverse_nat, by id. Its port is 0 where there is none. */
struct lb_frontend {
	__u8 addr[16];
	__u16 port; /* be */
	__u8 proto;
	__u8 family;
	__u32 pad;
};

/* Session affinity: cilium_lb_affinity. */
struct lb_affinity_key {
	__u8 client[16]; /* address, or cookie of the namespace in the first eight bytes */
	__u16 rev_nat;
	__u8 netns; /* the client is a namespace, as programs at sockets know it */
	__u8 family;
};

struct lb_affinity {
	__u32 last_used; /* seconds of the monotonic clock */
	__u32 backend;
};

/* Does the backend (still) serve the frontend? cilium_lb_affinity_match, a set. */
struct lb_member {
	__u32 backend;
	__u16 rev_nat;
	__u16 pad;
};

/* Sources of LB_SOURCE_RANGE: cilium_lb4_source_range, cilium_lb6_source_range; sets. */
struct lb_range_key4 {
	__u32 prefixlen; /* LB_RANGE_STATIC_BITS and those of the address */
	__u16 rev_nat;
	__u16 pad;
	__u32 addr;
};

struct lb_range_key6 {
	__u32 prefixlen;
	__u16 rev_nat;
	__u16 pad;
	__u8 addr[16];
};

enum lb_range_prefix {
	LB_RANGE_STATIC_BITS = 32,
};

/* Translations at sockets, backwards: cilium_lb_reverse_sk, the backend as the socket knows it. */
struct lb_socket_key {
	__u64 cookie; /* of the socket */
	__u8 addr[16];
	__u16 port;  /* be */
	__u8 family; /* enum family; of a mapped address that of IPv4 */
	__u8 pad;
	__u32 pad2;
};

struct lb_socket {
	__u8 addr[16]; /* that the process asked for */
	__u16 port;    /* be */
	__u16 rev_nat;
	__u32 backend;
};

/* Whose namespace it is: cilium_netns, cookie to pod. */
struct netns_info {
	__u32 identity;
	__u16 endpoint;
	__u16 flags; /* enum netns_flag */
};

enum netns_flag {
	NETNS_NO_REDIRECT = 1, /* local redirect policies with LB_SKIP_OWN do not hold here */
};

/* ---- fragments: first fragments leave the ports for the later ones ---- */

struct frag_key4 {
	__u32 saddr;
	__u32 daddr;
	__u16 id; /* be */
	__u8 proto;
	__u8 pad;
};

struct frag_key6 {
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 id; /* be */
	__u8 proto;
	__u8 pad[3];
};

struct frag_ports {
	__u16 sport; /* be */
	__u16 dport;
};

/* ---- XDP prefilter: cilium_cidr_v4_dyn, cilium_cidr_v6_dyn, cilium_ratelimit ---- */

struct cidr_key4 {
	__u32 prefixlen;
	__u32 addr; /* be */
};

struct cidr_key6 {
	__u32 prefixlen;
	__u8 addr[16];
};

struct cidr_info {
	__u64 packets; /* dropped by this prefix */
};

struct rate_key {
	__u8 ip[16];
	__u8 family;
	__u8 pad[3];
};

struct rate_bucket {
	__u64 last_ns;
	__u64 tokens;  /* in packets × 2^20 */
	__u32 refused; /* packets since the source was last let through */
	__u32 pad;
};

/* ---- counters: cilium_metrics, per processor ---- */

struct metrics_key {
	__u8 reason;    /* drop code, 0 for forwarded */
	__u8 direction; /* enum direction */
	__u16 line;
	__u8 file; /* enum source_file */
	__u8 pad[3];
};

struct metrics_value {
	__u64 packets;
	__u64 bytes;
};

enum source_file {
	FILE_HOST = 1,
	FILE_LXC = 2,
	FILE_OVERLAY = 3,
	FILE_XDP = 4,
	FILE_SOCK = 5,
	FILE_NETDEV = 6,
	FILE_PROXY = 8,
	FILE_SERVICES = 9,
	FILE_WATCH = 11,
	FILE_KERNEL = 10, /* no file of ours: the kernel dropped it, `line` is enum kernel_drop */
	FILE_PARSE = 101, /* headers shared by the programs */
	FILE_FRAGMENTS = 102,
	FILE_CONNTRACK = 103,
	FILE_POLICY = 104,
	FILE_NAT = 105,
	FILE_DELIVERY = 106,
	FILE_NEIGHBOURS = 108,
	FILE_HOST_FIREWALL = 109,
	FILE_LB = 110,
	FILE_NODEPORT = 111,
};

/* ---- events: cilium_events, a ring of records for each processor ---- */

enum event_type {
	EVENT_DROP = 1,
	EVENT_DEBUG = 2,
	EVENT_CAPTURE = 3,
	EVENT_TRACE = 4,
	EVENT_POLICY_VERDICT = 5,
	EVENT_TRACE_SOCK = 7,
};

enum trace_point {
	TRACE_TO_LXC = 0,
	TRACE_TO_PROXY = 1,
	TRACE_TO_HOST = 2,
	TRACE_TO_STACK = 3,
	TRACE_TO_OVERLAY = 4,
	TRACE_FROM_LXC = 5,
	TRACE_FROM_PROXY = 6,
	TRACE_FROM_HOST = 7,
	TRACE_FROM_STACK = 8,
	TRACE_FROM_OVERLAY = 9,
	TRACE_FROM_NETWORK = 10,
	TRACE_TO_NETWORK = 11,
};

/* subtype of EVENT_TRACE_SOCK. */
enum translation_point {
	XLATE_PRE_FORWARD = 1,
	XLATE_POST_FORWARD = 2,
	XLATE_PRE_REVERSE = 3,
	XLATE_POST_REVERSE = 4,
};

/* subtype of EVENT_DEBUG: what is said of a packet; numbers of flow.DebugEventType. */
enum debug_message {
	DEBUG_LOCAL_DELIVERY = 2, /* endpoint, identity of the sender */
	DEBUG_ENCAP = 3,          /* node (be), identity of the sender */
	DEBUG_POLICY_DENIED = 5,  /* identities of sender and receiver */
	DEBUG_CT_VERDICT = 15,    /* enum trace_reason, frontend that is answered for */
	DEBUG_TO_HOST = 19,
	DEBUG_TO_STACK = 20,
};

/* subtype of EVENT_CAPTURE: numbers of flow.DebugCapturePoint. */
enum debug_capture_point {
	DEBUG_CAPTURE_DELIVERY = 4,
	DEBUG_CAPTURE_PROXY_POST = 9,
	DEBUG_CAPTURE_SNAT_POST = 11,
};

/* Connection state of a traced packet. */
enum trace_reason {
	REASON_NEW = 0,
	REASON_ESTABLISHED = 1,
	REASON_REPLY = 2,
	REASON_RELATED = 3,
	REASON_UNKNOWN = 5,
};

enum event_flag {
	EVENT_IPV6 = 1,
	EVENT_L3 = 2,       /* addresses are valid */
	EVENT_L4 = 4,       /* ports or ICMP type are valid */
	EVENT_ETHERNET = 8, /* MAC addresses are valid */
	EVENT_AUDITED = 16,
	EVENT_INGRESS = 32, /* verdict: direction */
	EVENT_EGRESS = 64,
	EVENT_TUNNEL = 128, /* the packet came through or goes into the tunnel */
	EVENT_FRAGMENT = 256,
	EVENT_PROXIED = 512,
};

/*
 * One record, whatever the type. What was parsed is copied here, so that the reader never looks at
 * packet bytes; `flags` says which of the header fields are valid.
 */
struct event {
	__u64 time_ns;      /* monotonic */
	__u8 type;          /* enum event_type */
	__u8 subtype;       /* drop: reason; trace: enum trace_point */
	__u8 reason;        /* trace: enum trace_reason */
	__u8 proto;         /* IP protocol */
	__u16 endpoint;     /* local endpoint the event belongs to, 0 is none */
	__u16 flags;        /* enum event_flag */
	__u32 src_identity; /* debug: first argument */
	__u32 dst_identity; /* debug: second argument */
	/* trace: endpoint id, or proxy port; drop: endpoint id on ingress; debug: third argument */
	__u32 dst_id;
	__u32 ifindex; /* debug: hash of the packet */
	__s32 verdict; /* verdict: 0 allow, > 0 proxy port, < 0 minus the drop code */
	/*
	 * verdict: rules that decided; drop of FILE_KERNEL: how many were left out before it; debug:
	 * the processor
	 */
	__u32 cookie;
	__u8 saddr[16]; /* IPv4 in the first four bytes, the rest zero */
	__u8 daddr[16];
	/*
	 * source before translation, zero when there was none; of EVENT_TRACE_SOCK: cookie of the
	 * socket, then id of the cgroup
	 */
	__u8 orig_saddr[16];
	__u16 sport;    /* be; ICMP: type, as a be16 too */
	__u16 dport;    /* be; ICMP: code, as a be16 too */
	__u8 tcp_flags; /* of SCTP the type of the first chunk */
	__u8 match;     /* verdict: enum policy_match */
	__u8 file;      /* drop: enum source_file */
	__u8 pad;
	__u16 line;      /* drop: source line */
	__u16 ethertype; /* be */
	__u8 smac[6];
	__u8 dmac[6];
	__u32 bytes; /* since the last event of this direction, this packet included */
	__u32 packets;
	__u32 tunnel_peer; /* be; node at the other end of the tunnel */
	__u32 sequence; /* twice the record's number in its ring plus one, 0 while it is written */
};

enum event_ring {
	EVENT_RING_SIZE = 32768, /* records of a processor, a power of two */
};

/*
 * How many records a processor has ever written, cilium_event_heads. Record n lies in slot
 * n % EVENT_RING_SIZE of the processor's part of cilium_events. Readers map both into memory, keep
 * their own position, and are free to be late, to be several or to be none: the programs neither
 * know nor wait. What is EVENT_RING_SIZE behind has been overwritten and counts as lost.
 */
struct event_head {
	__u64 written;
	__u64 pad[7];
};

/* ---- what the kernel drops outside our programs: cilium_kernel_drops ---- */

enum kernel_drop_limits {
	KERNEL_REASONS = 256, /* numbers of the kernel's reasons that are told apart */
};

/* Where this kernel has the fields that are read, as offsets in bytes, and what to make of them. */
struct kernel_drops {
	__u64 interval_ns; /* between the events of a processor, in the long run */
	__u64 burst_ns;    /* how far they may run ahead of it */
	__u16 skb_dev;
	__u16 skb_sk;
	__u16 skb_head;
	__u16 skb_network_header;
	__u16 skb_protocol;
	__u16 skb_len;
	__u16 device_ifindex;
	__u16 device_net;
	__u16 sock_net;
	__u16 net_cookie;
	__u16 skb_mark;
	__u16 pad;
	__u8 codes[KERNEL_REASONS]; /* enum kernel_drop by the kernel's number; 0 is not told */
};

struct kernel_drop_pace {
	__u64 spent_ns;
	__u64 left_out; /* since the last event */
};

/* ---- whole packets for those who ask: cilium_capture, cilium_captures ---- */

enum capture_limits {
	CAPTURE_FILTERS = 16,
};

/* What to capture: packets whose addresses, ports and protocol are these; ports 0 are any. */
struct capture_filter {
	__u32 saddr[4]; /* be, as in struct event; masked already */
	__u32 smask[4];
	__u32 daddr[4];
	__u32 dmask[4];
	__u16 sport; /* be */
	__u16 dport;
	__u8 proto;     /* 0 is any */
	__u8 family;    /* enum family */
	__u8 recording; /* who asks: a bit of capture_record.recordings */
	__u8 pad;
};

/*
 * The one entry of cilium_capture. Whoever asks renews `until_ns` while it lives, so that nothing is
 * captured for one that was killed; 0 is off.
 */
struct capture {
	__u64 until_ns;    /* monotonic */
	__u32 count;       /* of filters */
	__u32 snap_length; /* bytes of a packet that are kept */
	struct capture_filter filters[CAPTURE_FILTERS];
};

/* Ahead of the packet's bytes, which begin with the Ethernet header. */
struct capture_record {
	__u64 time_ns;    /* monotonic */
	__u32 length;     /* of the packet, of which fewer bytes may follow */
	__u32 captured;   /* bytes that follow, others after them are none of the packet */
	__u32 recordings; /* bits of those whose filters match */
	__u16 endpoint;
	__u8 point;  /* enum trace_point, or CAPTURE_DROPPED */
	__u8 reason; /* of the drop */
};

/* Packets that found no room in the reader's ring, cilium_capture_losses. */
struct capture_losses {
	__u64 packets;
	__u64 bytes; /* that would have been kept of them */
};

enum capture_point {
	CAPTURE_DROPPED = 255,
};

/* ---- cilium_scratch: room for what the stack of a program cannot hold ---- */

struct scratch {
	struct ct_entry entry;
	__u64 packet[40]; /* what is known of the packet at hand; private to the programs */
};

#endif
