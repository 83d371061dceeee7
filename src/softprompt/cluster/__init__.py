"""Several machines: replicas of the server behind one address, and comparisons spread over nodes, by Ray."""
