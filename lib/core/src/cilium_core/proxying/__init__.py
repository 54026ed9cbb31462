"""What the proxies that are processes of ours share.

`running` is the life of such a process; `redirects` is what it enforces, as values, messages and on
disk; `subscribing` keeps that up to date from the agent; `reporting` hands over records of what was
seen; `transparent` makes sockets that speak under the addresses of others.
"""
