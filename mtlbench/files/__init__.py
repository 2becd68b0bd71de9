"""Files: written whole or not at all, sealed, temporary; who owns them; failing on purpose."""
