"""Book-keeping: per-record clipping for little more than the price of plain training."""
