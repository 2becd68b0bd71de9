"""Published result tables beside ours: read from ledgers, audited, and compared with a run. Never loads torch."""
