"""Training of many simulated sites at once, their models stacked in one tensor for each weight."""
