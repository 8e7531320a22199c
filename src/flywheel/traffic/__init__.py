"""Labels from production: which images were labelled and how they were answered, over all rounds."""
