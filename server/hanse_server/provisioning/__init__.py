"""Certificates, site kits and the register of sites."""
