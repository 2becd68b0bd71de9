"""Who is told what happens while cells run: the hooks, the progress display, experiment trackers."""
