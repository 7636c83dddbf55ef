"""What runs in the environments of the peers: `python -m benchmarks.peers.workers.NAME`, with this folder's modules."""
