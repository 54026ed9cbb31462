/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Every map of the data plane, one line each: what it is for, who writes it, who reads it.
 *
 * The programs name a map by its fixed index (an LD_IMM64 the loader turns into a file
 * descriptor), so one compilation serves every node and every generation of maps. The loader reads
 * this very list to create and pin the maps; the sizes are defaults that the agent may override.
 *
 *   MAP(index, NAME, "pin name", type, key, value, entries, flags)
 *   INNER(NAME, type, key, value, entries, flags)   maps held by the map of maps NAME
 *
 * CPUS is the number of processors the machine may have.
 */
#ifndef CILIUM_MAPS_H
#define CILIUM_MAPS_H

#define MAP(index, name, pin, type, key, value, entries, flags) MAP_##name = index,
#define INNER(name, type, key, value, entries, flags)

/* clang-format off */
enum map_index {
/* node configuration; written by the agent, read by all through a direct value pointer */
MAP(0, CONFIG, "cilium_config", ARRAY, __u32, struct config, 1, 0)
/* local address to endpoint; written by the agent, read on delivery */
MAP(1, LXC, "cilium_lxc", HASH, struct endpoint_key, struct endpoint_info, 65535, BPF_F_NO_PREALLOC)
/* ifindex to endpoint; written by the agent, read first for each packet of a pod's device */
MAP(2, DEVICES, "cilium_devices", HASH, struct device_key, struct endpoint_info, 65535, BPF_F_NO_PREALLOC)
/* address to identity and node; written by the agent, read for each peer that is not local */
MAP(3, IPCACHE, "cilium_ipcache_v2", LPM_TRIE, struct ipcache_key, struct ipcache_info, 512000, BPF_F_NO_PREALLOC)
/* endpoint id to its policy; written by the agent, read when a connection is new or rules changed */
MAP(4, POLICY, "cilium_policy", HASH_OF_MAPS, __u32, __u32, 65535, BPF_F_NO_PREALLOC)
INNER(POLICY, LPM_TRIE, struct policy_key, struct policy_entry, 16384, BPF_F_NO_PREALLOC)
/* TCP connections over IPv4; written by the programs, collected by the agent */
MAP(5, CT_TCP4, "cilium_ct4_global", LRU_HASH, struct ct_key4, struct ct_entry, 131072, 0)
/* other connections over IPv4 */
MAP(6, CT_ANY4, "cilium_ct_any4_global", LRU_HASH, struct ct_key4, struct ct_entry, 65536, 0)
/* TCP connections over IPv6 */
MAP(7, CT_TCP6, "cilium_ct6_global", LRU_HASH, struct ct_key6, struct ct_entry, 131072, 0)
/* other connections over IPv6 */
MAP(8, CT_ANY6, "cilium_ct_any6_global", LRU_HASH, struct ct_key6, struct ct_entry, 65536, 0)
/* masqueraded connections over IPv4, two entries each; written by the programs, collected by the agent */
MAP(9, SNAT4, "cilium_snat_v4_external", LRU_HASH, struct nat_key4, struct nat_entry4, 131072, 0)
/* masqueraded connections over IPv6 */
MAP(10, SNAT6, "cilium_snat_v6_external", LRU_HASH, struct nat_key6, struct nat_entry6, 131072, 0)
/* ports of fragmented datagrams; written at the first fragment, read at the later ones */
MAP(11, FRAG4, "cilium_ipv4_frag_datagrams", LRU_HASH, struct frag_key4, struct frag_ports, 8192, 0)
MAP(12, FRAG6, "cilium_ipv6_frag_datagrams", LRU_HASH, struct frag_key6, struct frag_ports, 8192, 0)
/* sources refused at the device before anything else; written by the agent, counted by XDP */
MAP(13, CIDR4, "cilium_cidr_v4_dyn", LPM_TRIE, struct cidr_key4, struct cidr_info, 16384, BPF_F_NO_PREALLOC)
MAP(14, CIDR6, "cilium_cidr_v6_dyn", LPM_TRIE, struct cidr_key6, struct cidr_info, 16384, BPF_F_NO_PREALLOC)
/* one token bucket for each source, while the rate limit is on; XDP alone */
MAP(15, RATELIMIT, "cilium_ratelimit", LRU_HASH, struct rate_key, struct rate_bucket, 65536, 0)
/* packets and bytes by outcome and place; written by all, read by the agent */
MAP(16, METRICS, "cilium_metrics", PERCPU_HASH, struct metrics_key, struct metrics_value, 1024, 0)
/* the events of each processor, EVENT_RING_SIZE slots; written by all, read through memory by anybody */
MAP(17, EVENTS, "cilium_events", ARRAY, __u32, struct event, 32768 * CPUS, BPF_F_MMAPABLE)
/* programs of one load, by enum call; never shared between two loads */
MAP(18, CALLS, "cilium_calls", PROG_ARRAY, __u32, __u32, 64, 0)
/* the packet at hand and its connection, the stack being too small; within one packet */
MAP(19, SCRATCH, "cilium_scratch", PERCPU_ARRAY, __u32, struct scratch, 1, 0)
/* how many events each processor has written */
MAP(20, EVENT_HEADS, "cilium_event_heads", ARRAY, __u32, struct event_head, CPUS, BPF_F_MMAPABLE)
/* what the policy of the node itself never stops; written by the agent, read when such a connection is new */
MAP(21, HOST_EXEMPT, "cilium_host_exempt", HASH, struct exempt_key, __u32, 1024, BPF_F_NO_PREALLOC)
/* frontends over IPv4 and IPv6; written by the agent, read at sockets, for pods' packets and at the device */
MAP(22, LB4_SERVICES, "cilium_lb4_services_v2", HASH, struct lb_key4, struct lb_service, 65536, 0)
MAP(23, LB6_SERVICES, "cilium_lb6_services_v2", HASH, struct lb_key6, struct lb_service, 65536, 0)
/* ids of backends, a run for each set of backends; written by the agent through memory */
MAP(24, LB_SLOTS, "cilium_lb_slots", ARRAY, __u32, __u32, 524288, BPF_F_MMAPABLE)
/* backends by id; written by the agent through memory */
MAP(25, LB_BACKENDS, "cilium_lb_backends", ARRAY, __u32, struct lb_backend, 65536, BPF_F_MMAPABLE)
/* frontends by id; written by the agent through memory, read to give answers the address that was asked */
MAP(26, LB_REVERSE_NAT, "cilium_lb_reverse_nat", ARRAY, __u32, struct lb_frontend, 65536, BPF_F_MMAPABLE)
/* tables of ids of backends, by frontend; written by the agent */
MAP(27, LB_MAGLEV, "cilium_lb_maglev", HASH_OF_MAPS, __u32, __u32, 65536, BPF_F_NO_PREALLOC)
INNER(LB_MAGLEV, ARRAY, __u32, __u32, 16381, BPF_F_MMAPABLE)
/* who was served by whom; written by the programs, collected by the agent */
MAP(28, LB_AFFINITY, "cilium_lb_affinity", LRU_HASH, struct lb_affinity_key, struct lb_affinity, 65536, 0)
/* who serves what, where affinity asks; written by the agent */
MAP(29, LB_MEMBERS, "cilium_lb_affinity_match", HASH, struct lb_member, __u32, 65536, BPF_F_NO_PREALLOC)
/* who may ask a frontend; written by the agent */
MAP(30, LB4_RANGES, "cilium_lb4_source_range", LPM_TRIE, struct lb_range_key4, __u32, 65536, BPF_F_NO_PREALLOC)
MAP(31, LB6_RANGES, "cilium_lb6_source_range", LPM_TRIE, struct lb_range_key6, __u32, 65536, BPF_F_NO_PREALLOC)
/* what sockets asked for, by socket and backend; written and read by the programs at sockets */
MAP(32, LB_SOCKETS, "cilium_lb_reverse_sk", LRU_HASH, struct lb_socket_key, struct lb_socket, 262144, 0)
/* pods by cookie of their namespace; written by the agent, read at sockets */
MAP(33, NETNS, "cilium_netns", HASH, __u64, struct netns_info, 65535, BPF_F_NO_PREALLOC)
/* a bit for each hash of a frontend's address (lb.h); written by the agent through memory, before the frontend */
MAP(34, LB_ADDRESSES, "cilium_lb_addresses", ARRAY, __u32, __u32, 2048, BPF_F_MMAPABLE)
/* the kernel's own drops: where its fields are, what is told; written by the agent */
MAP(35, KERNEL_DROPS, "cilium_kernel_drops", ARRAY, __u32, struct kernel_drops, 1, 0)
/* how many of them each processor has told of late */
MAP(36, KERNEL_DROP_PACE, "cilium_kernel_drop_pace", PERCPU_ARRAY, __u32, struct kernel_drop_pace, 1, 0)
/* whose packets are captured; written by hubble-server */
MAP(37, CAPTURE, "cilium_capture", ARRAY, __u32, struct capture, 1, 0)
/* captured packets, for the one reader who has put rings of memory here: hubble-server */
MAP(38, CAPTURES, "cilium_captures", PERF_EVENT_ARRAY, __u32, __u32, CPUS, 0)
/* and how many of them found no room in its rings; read by it */
MAP(39, CAPTURE_LOSSES, "cilium_capture_lost", PERCPU_ARRAY, __u32, struct capture_losses, 1, 0)
};
/* clang-format on */

#undef MAP
#undef INNER

/* Direct address of a map's first value, and the map itself, as the loader will patch them. */
#define map_of(name) ((__u64)bpf_pseudo_fd(1, MAP_##name))
#define config_of()  ((const struct config *)bpf_pseudo_fd(2, MAP_CONFIG))

#endif
