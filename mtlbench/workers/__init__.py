"""A worker: how it is asked to end, shows that it lives, reports where it hangs, and becomes several processes."""
