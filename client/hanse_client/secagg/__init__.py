"""The site's side of secure aggregation; :mod:`hanse.secagg` tells the protocol."""

from hanse_client.secagg.identity import certified, pin_of, simulated
from hanse_client.secagg.masking import Masking, masking_of, session_of

__all__ = ["Masking", "certified", "masking_of", "pin_of", "session_of", "simulated"]
