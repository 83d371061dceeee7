"""Generation: requests to write or to score, and the one scheduler that carries them out."""
