"""Stock Flower, with sites that send back what they get."""
