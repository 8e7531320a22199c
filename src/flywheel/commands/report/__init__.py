"""The report: one HTML page that tells where the wheel stands, from the files that the stages wrote."""
