"""The largest message that a side takes."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1_000_000
"""What ``max_model_mb`` and ``reply_mb`` count in."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that a header is held against before anything is allocated for its body.

    Attributes:
        max_body_bytes: all arrays of a message together.
        max_header_bytes: everything else of it: names, shapes, metrics, configuration.
        max_records: records of a message.
        max_arrays: arrays of a message.
        max_name_length: the name of a record, an array or a value, and every other label.
        max_dimensions: of an array.
    """

    max_body_bytes: int = 4096 * MEGABYTE
    max_header_bytes: int = 16 * MEGABYTE
    max_records: int = 1024
    max_arrays: int = 100_000
    max_name_length: int = 1024
    max_dimensions: int = 32
