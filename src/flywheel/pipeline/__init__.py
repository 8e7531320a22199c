"""What makes a function a stage: fingerprint, receipt, lock and run."""
