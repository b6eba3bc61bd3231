"""What both ends of a Hanse federation agree on."""

__version__ = "0.1.0"
