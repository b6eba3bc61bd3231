"""Flower's own SuperLink in place of Hanse's link: the same grid rides on either.

``post`` is what is used of Flower's Grid; ``nodes`` finds out which site each node speaks for;
``link`` sends what is pending and pulls what was answered; ``run`` is the life of a ServerApp.
"""

from hanse_server.superlink.link import SuperLink
from hanse_server.superlink.post import Post

__all__ = ["Post", "SuperLink"]
