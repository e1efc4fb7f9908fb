"""The report of a model: measured, judged, and written as a page and as JSON."""
