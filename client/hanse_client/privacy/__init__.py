"""Training under differential privacy at the site."""
