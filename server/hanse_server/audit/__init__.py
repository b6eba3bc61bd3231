"""The server's audit trail: what it sent and accepted, and whether that holds together."""

from hanse_server.audit.trail import ServerTrail

__all__ = ["ServerTrail"]
