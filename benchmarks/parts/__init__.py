"""The parts of a run. Each starts what it needs, and yields the subjects of its rows by name."""
