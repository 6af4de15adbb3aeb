"""What networks cost: time in turns with their peers, memory, and what the machine could do."""
