"""Predictions -> metrics, comparison of two models, pictures."""
