"""What a query is."""
