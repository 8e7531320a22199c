"""The gate: the rules (pure), what models answer on the same images, and how a decision is shown."""
