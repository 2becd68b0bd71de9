"""One cell in several processes: collectives, and backbones sharded with FSDP2."""
