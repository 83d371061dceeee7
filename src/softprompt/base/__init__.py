"""The frozen model: found, loaded, fingerprinted, read and generated from; it never changes."""
