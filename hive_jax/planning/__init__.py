"""What a compiled train step needs of a machine, before there is one."""

# For help and errors; `hardware.find_topology` reads such names.
TOPOLOGY_EXAMPLES = "v5e:4x4, v5p:2x2x2, l4:1, cpu:8 or gpu"
