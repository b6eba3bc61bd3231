"""The empirical audit of private training: canaries in a run, and what can be told of them."""
