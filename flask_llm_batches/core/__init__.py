"""What a batch does; knows no HTTP."""
