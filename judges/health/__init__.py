"""Whether a judge can be trusted: agreement with people and with itself, length, canaries."""
