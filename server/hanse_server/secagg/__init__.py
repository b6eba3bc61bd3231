"""The server's side of secure aggregation; :mod:`hanse.secagg` tells the protocol."""

from hanse_server.secagg.training import SecureOutcome, SecureTraining

__all__ = ["SecureOutcome", "SecureTraining"]
