"""The site's end of the link: one stream to the coordinator, opened from here."""

from hanse_client.link.client import LinkClient
from hanse_client.link.coordinator import Coordinator, Greeting, greet

__all__ = ["Coordinator", "Greeting", "LinkClient", "greet"]
