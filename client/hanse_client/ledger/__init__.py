"""The privacy ledger of a site: what was spent on its data, durably, in rows chained by hash.

``events`` are what is written; ``chain`` is the file that only ever grows; ``book`` is what the
events come to, and knows which data belongs together; ``ledger`` is the one writer, and tells
each row in the audit trail; ``anchors`` holds the two against each other.
"""

from hanse_client.ledger.book import Book, Entry, Statement
from hanse_client.ledger.events import Instruction
from hanse_client.ledger.ledger import Ledger, Reservation
from hanse_client.ledger.reader import read_ledger

__all__ = ["Book", "Entry", "Instruction", "Ledger", "Reservation", "Statement", "read_ledger"]
