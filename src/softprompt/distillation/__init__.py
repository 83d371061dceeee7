"""A long text, or a saved prompt, and its answers, for a short prefix to learn from."""
