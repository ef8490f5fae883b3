"""From committed updates to the next global model: checks, means, server optimizer, guard, commit.

Here: what the coordinator computes, in bounded memory and with the same bits each time.
Not here: waiting for sites (tasks/, flows/) and reading a run (run/).
"""
