"""The read side of the kernel's event ring: our own perf buffers behind the pinned events map."""
