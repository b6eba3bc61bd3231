"""The server's side of secure aggregation; :mod:`hanse.secagg` tells the protocol."""

from hanse_server.secagg.round import SecureOutcome
from hanse_server.secagg.training import SecureTraining

__all__ = ["SecureOutcome", "SecureTraining"]
