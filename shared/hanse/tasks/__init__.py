"""The tasks that ship with Hanse."""
