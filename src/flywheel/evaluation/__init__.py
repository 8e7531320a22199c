"""Evaluate the best model on the test set, with plots, and let the gate decide."""
