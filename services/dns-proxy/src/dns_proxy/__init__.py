"""The DNS proxy: judges what pods ask for, tells the agent which addresses names have."""
