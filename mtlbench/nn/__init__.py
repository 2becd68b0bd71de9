"""Everything that needs torch: backbone, routing, injection, batches, training, evaluation, cost, cell."""
