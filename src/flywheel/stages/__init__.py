"""One module a stage: what it is (inputs, identity params, code) and what it does, from the rooms below."""
