"""One page about runs: curves over each other, what differs, responses to look at."""
