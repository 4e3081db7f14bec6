"""Hours without a fault: fuzzed calls and files, killed commands, full disks, threads."""
