"""What a container reaches in its networks."""

import json

from tests.support.commands import run
from tests.support.containers import Containers, inside

# Which of the addresses take a connection.
REACH = """
import json, socket, sys
found = []
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        continue
    found.append(address)
print(json.dumps(found))
"""
# The engine's machine, as a container finds it.
GATEWAY = """
import json, socket, struct
routes = [line.split() for line in open("/proc/net/route")]
gateways = [route[2] for route in routes if route[1] == "00000000"]
print(json.dumps(socket.inet_ntoa(struct.pack("<L", int(gateways[0], 16))) if gateways else ""))
"""


def addresses(container: str) -> list[str]:
    """The container's address in each of its networks."""
    networks = json.loads(
        run("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", container)
    )
    return [network["IPAddress"] for network in networks.values()]


def reached(stack: Containers, service: str, *places: str) -> list[str]:
    """Which of the places (HOST:PORT) take a connection from the service's container."""
    return inside(stack, service, REACH, *places)
