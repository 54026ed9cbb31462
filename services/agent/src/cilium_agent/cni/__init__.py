"""The container runtime's side: requests on cni.sock, the delete queue, the configuration file."""
