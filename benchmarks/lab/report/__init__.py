"""The lab's report: a live table, CSV, one HTML page, and the block of the guide."""
