"""Experiment-tracking sweep harness for DCGANs: Optuna drives, torch-fidelity scores, MLflow records."""

__version__ = "0.1.0"
