"""What others can learn of engines while they run: metrics, and events with their log."""
