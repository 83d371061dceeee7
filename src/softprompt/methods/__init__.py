"""What can be learnt in front of a frozen model: one file a method, all behind one interface."""
