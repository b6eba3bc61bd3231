"""The site's side of secure aggregation; :mod:`hanse.secagg` tells the protocol."""

from hanse_client.secagg.identity import certified, simulated
from hanse_client.secagg.masking import Masking, masking_of, session_of

__all__ = ["Masking", "certified", "masking_of", "session_of", "simulated"]
