"""Recording packets: whose, by filters in the kernel; where to, a file of the node or a client."""
