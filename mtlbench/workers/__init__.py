"""A worker: how it is asked to end, shows that it lives, tells where it hangs, and becomes several processes."""
