"""Cilium's other objects: endpoints, identities, nodes, pools and what is left of old versions.

    endpoints     CiliumEndpoint and CiliumEndpointSlice
    nodes         CiliumNode, CiliumIdentity and CiliumExternalWorkload
    pools         CiliumPodIPPool and CiliumLoadBalancerIPPool
    converting    older spellings of them, rewritten into the real schema

Models with the names and limits of the public schemas. They are what the custom resource
definitions are made from, and what files are checked against.
"""
