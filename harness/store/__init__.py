"""The Optuna database: connection, leases, the life of trials, typed records, samplers and pruners."""
