"""Feedback from production: which images were answered wrongly, over all rounds."""
