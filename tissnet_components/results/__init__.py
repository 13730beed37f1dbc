"""What leaves: maps, summaries, pictures and tables."""
