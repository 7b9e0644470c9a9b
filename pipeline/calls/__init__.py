"""Paid calls: requests and replies, the client, its limits, and the ledger that pays for an answer once."""
