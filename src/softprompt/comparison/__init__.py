"""Which method wins on these rows, and at what cost: runs, results and a report."""
