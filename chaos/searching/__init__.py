"""Looking for plans of faults and loads that break an invariant, in the simulated world."""
