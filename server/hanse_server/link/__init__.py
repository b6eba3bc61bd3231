"""The server's end of the link: the gRPC service that the sites' streams come in on."""

from hanse_server.link.exchange import Instruction, Reply, Slots
from hanse_server.link.server import LinkServer

__all__ = ["Instruction", "LinkServer", "Reply", "Slots"]
