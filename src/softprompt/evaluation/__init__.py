"""How good a front is: scores on held-out rows, each with its interval."""
