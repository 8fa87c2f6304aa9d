"""Networks. Modules know no files, keys or configs."""
