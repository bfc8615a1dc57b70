"""What an analysis yields, its JSON form and the schema of that."""
