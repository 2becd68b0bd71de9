"""First-party tasks of mtlbench, registered by the same entry points as any plugin."""
