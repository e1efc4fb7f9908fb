"""The report of a model: measured, answered, and written as a page and as JSON."""
