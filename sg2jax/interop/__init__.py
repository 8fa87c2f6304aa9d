"""Files of other programs: read as data, never run."""
