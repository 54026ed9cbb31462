"""Services where there is no Kubernetes: their addresses and ports, and the endpoints behind them.

reading     what a Service object says, whatever its form
conditions  conditions in the status of an object
allocating  cluster addresses and node ports: who holds which (pure)
balancing   addresses of load balancers out of CiliumLoadBalancerIPPools (pure)
assigning   writes what these two decide into the objects
slicing     EndpointSlices of a Service out of its Pods (pure)
publishing  keeps the EndpointSlices that slicing decides
"""
