"""What a study would take on this machine: time, memory and disk, from a few measured steps."""
