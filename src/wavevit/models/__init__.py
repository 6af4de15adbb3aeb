"""Network architectures and their checkpoints."""
