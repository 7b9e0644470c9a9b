"""People's preferences from files, every broken row counted by name."""
