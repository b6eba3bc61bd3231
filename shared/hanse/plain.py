"""Text of the other side, made fit for a log, a terminal and a page."""

from __future__ import annotations


def plain(text: str, most: int) -> str:
    """``text``, at most ``most`` characters of it, with what is not printed written out.

    Escape codes would recolour or rewrite the terminal of who reads, and line ends would forge
    lines of a log.
    """
    written = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return written if len(written) <= most else written[: most - 1] + "…"
