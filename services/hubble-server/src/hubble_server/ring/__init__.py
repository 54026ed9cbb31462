"""The read side of the kernel's events: the mapped ring, emptied in bulk, in order of time."""
