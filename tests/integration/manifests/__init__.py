"""The rendered overlay, run as local processes."""
