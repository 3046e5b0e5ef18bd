"""The paper's Tables 1 and 3 in miniature: every method at every budget, training-free and trained."""
