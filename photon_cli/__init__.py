"""The command line: photon."""
