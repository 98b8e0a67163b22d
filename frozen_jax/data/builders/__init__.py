"""tensorflow-datasets builders: of the built-in data sets, and of rows from JSON-lines files."""
