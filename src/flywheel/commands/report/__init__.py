"""Write one HTML page with all results, from the files that the stages wrote."""
