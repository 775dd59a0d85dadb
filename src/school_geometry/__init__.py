"""School geometry problems drawn by seed, with wordings, solutions, answers and figures."""
