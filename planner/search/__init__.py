"""What is chosen: candidates, their cost, budgets and certificates."""
