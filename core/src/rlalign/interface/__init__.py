"""What a plugin implements, and what it sees."""
