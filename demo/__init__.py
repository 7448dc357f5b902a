"""``make demo``: from nothing to features of real photographs, with the commands a user would type."""
