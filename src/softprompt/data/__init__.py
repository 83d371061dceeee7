"""Rows of a task: where they come from and how they become text and tokens."""
