"""The report of a run: Markdown, CSV and plots."""
