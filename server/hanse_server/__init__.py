"""The aggregation server of a Hanse federation."""
