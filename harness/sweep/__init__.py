"""The study: Optuna's storage, the objective, workers and their supervisor."""
