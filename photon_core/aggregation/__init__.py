"""From committed updates to the next global model: checks, means, server optimizer, guard, commit.

Here: what the coordinator computes, in bounded memory and the same bits each time.
Not here: whom to wait for (tasks/, flows/) and reading a run (run/).
"""
