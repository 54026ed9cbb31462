"""Kubernetes objects, wherever they are kept.

    keys         kinds and where objects lie in etcd; imports nothing heavy
    documents    YAML to objects, with line numbers for errors
    model        the Source interface and its events
    etcd         objects kept in etcd (standalone mode)

Nothing is imported here: a command line that only needs a key pays for `keys` alone.
"""
