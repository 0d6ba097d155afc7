"""What `switchyard bench generation` is made of: its workloads, its systems, the machine's bounds."""
