"""What runs the worker."""
