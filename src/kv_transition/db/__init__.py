"""The SQLite database that people query and pass on."""
