"""What the proxies that are processes of ours share.

`redirects` is what they enforce, as values, messages and on disk; `subscribing` keeps it up to date
from the agent; `reporting` hands over records of what they saw; `transparent` makes sockets that
speak under the addresses of others.
"""
