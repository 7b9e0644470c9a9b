"""What rules check: answers, constraints, documents."""
