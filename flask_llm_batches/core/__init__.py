"""The work of a batch. Nothing in this package knows about HTTP."""
