"""Results as data: a row for each observation, JSON, tables of text; for reports, ``--json`` and Python."""
