"""The server's end of the link: the gRPC service that the sites' streams come in on."""

from hanse_server.link.instruction import Instruction, Reply
from hanse_server.link.server import LinkServer
from hanse_server.link.slots import Slots

__all__ = ["Instruction", "LinkServer", "Reply", "Slots"]
