"""Our own modules that the fork server imports ahead; torch, composer and streaming come before them."""
