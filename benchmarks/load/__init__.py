"""The load generator: callers in a closed loop or at a fixed rate, and their connections."""
