"""First-party tasks of mtlbench, found through the same entry points as anyone's."""
