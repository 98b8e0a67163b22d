"""The device mesh, the table of sharding rules, several hosts, and the checksum of a tree."""
