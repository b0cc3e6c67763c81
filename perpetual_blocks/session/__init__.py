"""Sessions: who owns a chain, the loop, the end, and what comes next."""
