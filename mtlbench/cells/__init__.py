"""Running one cell: from its names to its record."""
