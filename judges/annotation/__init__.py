"""People's votes: what they are asked, where their votes are kept, and the local page they vote on."""
