"""One file for each framework; nobody else names it."""
