"""Accounting and calibration of differential privacy: pure functions."""
