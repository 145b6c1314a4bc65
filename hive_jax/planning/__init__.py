"""What a compiled train step needs of a machine, before there is one."""
