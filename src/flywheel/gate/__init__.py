"""The gate: its rules (pure), the predictions that it compares, its decisions and the promotions they lead to."""
