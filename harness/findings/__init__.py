"""Numbers from records: ranking, statistics, confirmation, verdicts, outlook, health."""
