"""This machine and its shell: prepare the environment, name what is missing, start Ray."""
