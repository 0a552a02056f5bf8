"""The DCGAN: networks, losses, training loop, checkpoints. Knows torch and nothing of studies, MLflow or files."""
