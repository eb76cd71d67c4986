"""The work of a batch. Nothing in this package depends on HTTP."""
