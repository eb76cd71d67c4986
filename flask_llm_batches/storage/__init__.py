"""Where bytes are kept: the database, a folder, an object store."""
