"""Tables of results: what the paper printed, what was measured, and both side by side."""
