"""Keep Ray on the loopback address. Ray has no setting for it, so both switches below go around that.

`tests/serving/test_server.py` looks at every listening socket, so a Ray version in which this stops working is noticed.
"""

from __future__ import annotations

import os

# With "0" Ray takes 127.0.0.1 for the node's address, and its processes listen there only. Read when Ray is imported,
# and inherited by every process that it starts.
RAY_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def use_loopback() -> None:
    """Make the Ray that this process is about to start listen on loopback only. Call it before importing Ray."""
    os.environ[RAY_CLUSTERS] = "0"


def own_host() -> str:
    """The address by which other processes of the cluster reach this one."""
    if os.environ.get(RAY_CLUSTERS) == "0":
        return "127.0.0.1"
    import ray

    host: str = ray.util.get_node_ip_address()
    return host


def bind_replica_to_loopback() -> None:
    """In a replica of such a Ray: bind the server for messages between deployments to loopback.

    Ray Serve binds it to every interface of the machine, after the replica's constructor has run.
    """
    if os.environ.get(RAY_CLUSTERS) != "0":
        return
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    if getattr(add_port, "is_loopback", False):
        return

    def add_loopback_port(server: object, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", "127.0.0.1"))
        return port

    add_loopback_port.is_loopback = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = add_loopback_port
