"""What cells will need in time and memory."""
