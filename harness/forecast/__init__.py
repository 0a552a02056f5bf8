"""What a study would take: time, memory, disk."""
