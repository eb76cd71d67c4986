"""The record of batches and usage: the only code that imports SQLAlchemy."""
