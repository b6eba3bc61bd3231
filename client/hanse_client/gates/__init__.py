"""The gates of a site, each a Flower mod, in the order in which a message passes them.

``account`` answers every refusal by name and tells the administrator; ``policy`` asks whether
this is allowed here; ``ledger`` whether the privacy budget covers it, and reserves it; then
comes the work; ``masking`` hides its update in a secure round; and ``egress`` lets out what the
policy lists, and nothing else. Between the two ``encoding`` makes the update smaller, where the
job asks for it; what that leaves out is kept by ``keeping``, once the ledger has charged for it.
"""

from __future__ import annotations

from flwr.clientapp.typing import Mod

from hanse_client.gates.account import account, refuse, tell_breach
from hanse_client.gates.egress import egress
from hanse_client.gates.encoding import encoding, keeping
from hanse_client.gates.ledger import ledger
from hanse_client.gates.masking import masking
from hanse_client.gates.policy import policy
from hanse_client.runtime import Resolve

__all__ = ["gates", "refuse", "tell_breach"]


def gates(resolve: Resolve) -> list[Mod]:
    """The mods of a site's ClientApp, outermost first."""
    return [
        account(resolve),
        policy(resolve),
        keeping(resolve),
        ledger(resolve),
        egress(resolve),
        encoding(resolve),
        masking(resolve),
    ]
