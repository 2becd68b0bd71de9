"""Commands for people who write plugins, and for single cells of a run folder."""
