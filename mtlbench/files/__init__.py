"""Files: atomic and checksummed writes, temporary files, owners, stop requests, heartbeats, fail points, redaction."""
