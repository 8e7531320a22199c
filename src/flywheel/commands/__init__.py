"""Commands that look at a profile or tidy it: status, doctor, report, compare, prune, demo."""
