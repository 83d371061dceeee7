"""What a job will need, said before it runs: parameters, memory by part, time, the artifact's size."""
