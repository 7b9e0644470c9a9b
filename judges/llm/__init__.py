"""Language models as judges: what they are asked, how their replies are read, and how many verdicts become scores."""
