"""Services: from objects of the cluster to frontends and backends of a node; no I/O."""
