"""The report of a model: measured, and written as a page and as JSON."""
