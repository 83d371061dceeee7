"""What a learnt prompt is near, does and says, and what of that could be chance."""
