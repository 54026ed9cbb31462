"""Objects that are no policies: Cilium's own, what is left of old versions, and services.

    endpoints     CiliumEndpoint and CiliumEndpointSlice
    nodes         CiliumNode, CiliumIdentity and CiliumExternalWorkload
    pools         CiliumPodIPPool and CiliumLoadBalancerIPPool
    services      Service and EndpointSlice
    converting    older spellings of them, rewritten into the real schema

Models with the names and limits of the public schemas. They are what files are checked against,
and what the custom resource definitions of Cilium's own are made from.
"""
