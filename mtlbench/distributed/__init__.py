"""One cell in several processes: shared rows, shared weights, agreement."""
