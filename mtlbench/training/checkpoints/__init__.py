"""What training leaves on disk to go on from, and how it is found again."""
