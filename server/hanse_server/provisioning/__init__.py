"""Certificates, site kits and the register of sites: what `hanse provision` does."""
