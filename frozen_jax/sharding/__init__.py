"""Floor 1: the device mesh, the table of sharding rules, hosts, and the checksum of a tree."""
