"""Write-only record of what happens, for people to look at: MLflow, or nothing. No decision reads it back."""
