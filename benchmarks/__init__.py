"""What is measured, against what, and the report it writes. Ratios within one run, never times."""
