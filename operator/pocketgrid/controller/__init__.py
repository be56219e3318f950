"""The cluster's side of the grid: objects become work, and what happens to it becomes their status."""
