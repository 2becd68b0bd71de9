"""Published result tables: read from ledgers, audited, and compared with a run. Never loads torch."""
