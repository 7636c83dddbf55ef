"""Results for people and papers."""
