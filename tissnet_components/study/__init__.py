"""Many trainings and evaluations by one file."""
